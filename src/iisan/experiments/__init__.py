"""Records of runs, and what is made of them: tables, charts and one report."""

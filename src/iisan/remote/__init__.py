"""Object stores: what is at addresses such as ``s3://BUCKET/PREFIX`` has a copy on this machine."""

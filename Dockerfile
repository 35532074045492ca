# The service of a run that is mounted at /run/iisan; see docs/service.md.
#   docker build --tag iisan-serve .
# For PyTorch without CUDA: --build-arg PIP_EXTRA_INDEX_URL=… with PyTorch's index of CPU wheels.
FROM python:3.11-slim

ARG PIP_EXTRA_INDEX_URL=
WORKDIR /iisan
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN pip install --no-cache-dir --constraint constraints.txt ".[serve,index]" \
    && useradd --create-home iisan
USER iisan
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["iisan", "serve", "--host", "0.0.0.0"]
CMD ["/run/iisan"]

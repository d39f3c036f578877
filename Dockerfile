# A server in a container, as an ordinary user:
#
#   docker build -t msrn .
#   docker run --rm --stop-timeout 40 -p 8000:8000 -v "$PWD/runs/scenes/bundle:/bundle:ro" -e MSRN_API_KEY=... msrn
#
# Without a GPU, give --build-arg PIP_EXTRA_INDEX_URL=... with the address of PyTorch's CPU index: the image is several GB smaller.
FROM python:3.12-slim

ARG PIP_EXTRA_INDEX_URL=""
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN useradd --create-home --uid 10001 msrn
COPY pyproject.toml constraints.txt README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir --constraint /source/constraints.txt '/source[server]' && rm -r /source

USER msrn
WORKDIR /home/msrn
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# Told to stop, the server first answers what it accepted, for which it may need 35 seconds; hence --stop-timeout.
STOPSIGNAL SIGTERM
ENTRYPOINT ["msrn", "serve"]
CMD ["/bundle", "--host", "0.0.0.0"]

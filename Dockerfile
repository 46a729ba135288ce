# ForgeLLM on a Linux CPU. `docker compose up`, or: docker build -t forgellm . && docker run forgellm keys create
FROM python:3.12-slim

# scipy-openblas32 compiles one small shim at the first start; tini passes signals on and buries orphans.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev tini && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir . && rm -rf /src/*

RUN useradd --create-home forgellm && mkdir /data && chown forgellm /data
USER forgellm
WORKDIR /home/forgellm
ENV FORGELLM_CACHE_DIR=/data/cache FORGELLM_KEYS_FILE=/data/keys.json FORGELLM_MACHINES_DIR=/data/machines \
    FORGELLM_LOG_FORMAT=json HF_HOME=/data/huggingface
VOLUME /data
EXPOSE 5001

# From outside the container it is reached only with a key: `docker compose run --rm forgellm keys create`.
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5001/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "forgellm"]
CMD ["serve", "--host", "0.0.0.0"]

# The application, without its development tools. docker-compose.yml runs the worker and Flower from it.
FROM python:3.13-slim AS build

RUN python -m venv /opt/proj
ENV PATH=/opt/proj/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# The dependencies in a layer of their own: it stays while only the code changes.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        >requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY proj ./proj
RUN pip install --no-deps .


FROM python:3.13-slim

# A number below as well: Kubernetes refuses to check a name against runAsNonRoot.
RUN groupadd --gid 1000 proj \
    && useradd --uid 1000 --gid proj --home-dir /var/lib/proj --create-home --shell /usr/sbin/nologin proj
COPY --from=build /opt/proj /opt/proj
ENV PATH=/opt/proj/bin:$PATH PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /var/lib/proj

# The exec form: celery itself is process 1 and gets the SIGTERM that ends a container.
CMD ["celery", "-A", "proj", "worker", "-c", "1"]

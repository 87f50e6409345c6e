# One image for every process of Prompt Stack; docker-compose.yml says which one a container runs.
FROM python:3.11-slim AS build

RUN pip install --no-cache-dir --root-user-action=ignore uv==0.13.9
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
WORKDIR /app

# The dependencies are a layer of their own, which a change of our code does not build anew.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --extra s3 --no-install-project

COPY src ./src
COPY api ./api
COPY chaos ./chaos
COPY config ./config
COPY embedded ./embedded
COPY repositories ./repositories
COPY services ./services
COPY simulator ./simulator
COPY tasks ./tasks
COPY worker ./worker
RUN uv sync --frozen --no-dev --extra s3 --no-editable


FROM python:3.11-slim

# A number, so that an orchestrator can see that it is not root.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /app promptstack
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app
USER 10001:10001
CMD ["promptstack", "--help"]

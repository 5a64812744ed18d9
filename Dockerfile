# The service in a container: captions over HTTP, without PyTorch, as a user without rights, on a read-only disk.
#
#   docker build -t lamb .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:8000:8000 lamb
#   curl -F file=@dog.wav http://127.0.0.1:8000/v1/caption
#
# Any other command runs too:  docker run --rm -v "$PWD:/sounds:ro" lamb caption /sounds
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY lamb lamb
RUN pip install --no-cache-dir --no-compile --target /opt/lamb -c constraints.txt '.[serve]'

FROM python:3.11-slim
RUN useradd --system --uid 10001 --no-create-home lamb
COPY --from=build /opt/lamb /opt/lamb
ENV PYTHONPATH=/opt/lamb PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["python", "-m", "lamb"]
CMD ["serve", "--host", "0.0.0.0"]

# lrec in a container. docs/tutorial.md shows how to use it.
#   on a CPU: docker build -t lrec .
#   on a GPU: docker build -t lrec --build-arg TORCH=https://pypi.org/simple .
FROM python:3.12-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url ${TORCH} "torch>=2.13"
WORKDIR /opt/lrec
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY configs configs
RUN pip install --no-cache-dir .
# Every user may write to this folder, also a user given by --user.
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["lrec"]
CMD ["--help"]

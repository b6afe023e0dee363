# A static binary alone: no shell, no libc, nothing to patch but the binary and the certificates.
#
#   docker build -t feedmirror .
#   docker run -d --name feedmirror -v feedmirror:/var/lib/feedmirror -v ./feedmirror.toml:/etc/feedmirror/config.toml:ro feedmirror

FROM rust:1.89-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates musl-tools \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The one of the machine that builds: x86_64-unknown-linux-musl or aarch64-unknown-linux-musl.
RUN packaging/build-static "$(uname -m)-unknown-linux-musl" \
    && install -d /image/usr/bin \
    && strip --strip-debug -o /image/usr/bin/feedmirror "target/$(uname -m)-unknown-linux-musl/release/feedmirror" \
    && install -d -m 0750 -o 65532 -g 65532 /image/var/lib/feedmirror \
    && install -d -m 1777 /image/tmp

FROM scratch
LABEL org.opencontainers.image.description="Keeps a local, always-current, queryable copy of other people's change feeds in one SQLite file" \
    org.opencontainers.image.licenses="MIT OR Apache-2.0"
COPY --from=build /image/ /
# rustls takes the system's authorities: these.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# By number, as there is no /etc/passwd. A folder of the host's that is mounted here must be this user's.
USER 65532:65532
WORKDIR /var/lib/feedmirror
VOLUME ["/var/lib/feedmirror"]
ENV FEEDMIRROR_DATABASE=/var/lib/feedmirror/mirror.db
# The webhooks' listener, if it is set to 0.0.0.0:8471. The operators' stays on the container's loopback.
EXPOSE 8471
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=15m \
    CMD ["/usr/bin/feedmirror", "status", "--ready"]
ENTRYPOINT ["/usr/bin/feedmirror"]
CMD ["run"]

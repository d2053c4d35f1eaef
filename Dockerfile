# A node in a container:
#
#   docker build --tag ferrule .
#   docker run --network host --volume /etc/ferrule:/etc/ferrule:ro --volume ferrule:/var/lib/ferrule ferrule
#
# It needs BuildKit, which compiles only the stages that are used (Docker before 23: DOCKER_BUILDKIT=1).
# glibc, because profiles of jemalloc crash on musl.

# What compiles; and what the node runs on, anything with glibc 2.36 or later and libgcc: there is no
# shell in what follows.
ARG RUST=rust:1.95-bookworm
ARG RUNTIME=debian:bookworm-slim
# `built` here, or `prebuilt`: then it is PREBUILT, a path in the build's context.
ARG BINARY=built

FROM ${RUST} AS built
WORKDIR /ferrule
COPY . .
RUN cargo build --release --locked --package proxy --bin ferrule \
 && install -D target/release/ferrule /out/usr/bin/ferrule \
 && install -D -m 644 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt

FROM scratch AS prebuilt
ARG PREBUILT=target/release/ferrule
COPY ${PREBUILT} /out/usr/bin/ferrule

FROM ${BINARY} AS binary

FROM scratch AS empty
WORKDIR /empty

FROM ${RUNTIME}
COPY --from=binary /out/ /
# An example, whose node has no apps; yours is mounted over it.
COPY --chown=65532:65532 config/edge.toml /etc/ferrule/
# Folders of the user's own: what outlives the process, and the admin socket.
COPY --from=empty --chown=65532:65532 /empty/ /var/lib/ferrule/
COPY --from=empty --chown=65532:65532 /empty/ /run/ferrule/
# A number, so that nobody has to look it up: the runtime need not know the name.
USER 65532:65532
VOLUME /var/lib/ferrule
# Drains, and ends with 0. Give it longer than the longest drain: `docker stop --time 90`.
STOPSIGNAL SIGTERM
# Ready to serve, asked at the admin socket: an inventory, certificates, open doors, not draining.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=2 \
  CMD ["/usr/bin/ferrule", "status", "--ready", "--config", "/etc/ferrule/edge.toml"]
# As process 1 it supervises the node, which may then be replaced: `docker exec … ferrule upgrade`.
ENTRYPOINT ["/usr/bin/ferrule"]
CMD ["run", "--config", "/etc/ferrule/edge.toml"]

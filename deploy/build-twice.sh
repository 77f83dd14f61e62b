#!/usr/bin/env bash
# Make the image twice, from nothing and in different places, and compare what came out.
#
#   BASE_DIGEST=sha256:... deploy/build-twice.sh [ARGUMENT OF THE BUILDER...]
#
#   BASE_DIGEST      digest of the base image; docs/deploy.md says how to look it up
#   BASE_IMAGE       its repository, without tag
#   WEIGHTS          weights to bake in, ids of `confide models list` with spaces between them
#   SOURCE_REPO_URL  where the source is; by default that of the remote "origin"
#   SOURCE           "commit" (default): what HEAD holds. "worktree": what lies here, for a rehearsal
#   EXPECT           a digest that both have to have, such as a published one
#   BUILDER          buildah, podman or docker; by default the first that works here
#
# Exit status, as of `confide`: 0 the same; 1 they differ, or are not as expected; 2 wrong usage, or a build failed;
# 3 nothing here can build images, so nothing was found out.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "build-twice: $*" >&2; }
stop() { say "$2"; exit "$1"; }

works() {
  case $1 in
    buildah | podman) "$1" info > /dev/null 2>&1 ;;
    docker) docker buildx version > /dev/null 2>&1 && docker info > /dev/null 2>&1 ;;
    *) return 1 ;;
  esac
}

find_builder() {
  local name
  for name in ${BUILDER:-buildah podman docker}; do
    if works "$name"; then echo "$name"; return; fi
  done
}

[[ ${BASE_DIGEST:-} =~ ^sha256:[0-9a-f]{64}$ ]] || stop 2 "BASE_DIGEST: got \"${BASE_DIGEST:-}\", expected sha256: and 64 hex digits; docs/deploy.md says where to look it up"
builder=$(find_builder)
[ -n "$builder" ] || stop 3 "NOTHING WAS BUILT AND NOTHING COMPARED: no buildah, podman or docker works here"
commit=$(git rev-parse HEAD)
url=${SOURCE_REPO_URL:-$(git remote get-url origin 2> /dev/null || true)}
[ -n "$url" ] || stop 2 "SOURCE_REPO_URL: there is no remote \"origin\" to take it from"
source=${SOURCE:-commit}
epoch=$(sed -n 's/^ARG SOURCE_DATE_EPOCH=//p' deploy/Dockerfile)

scratch=$(mktemp -d)
run=confide-build-$$  # names that no earlier image has: a build that failed must not be taken for that one
trap 'rm -rf "$scratch"' EXIT

lay() {  # the source in directory $1
  mkdir -p "$1"
  case $source in
    commit) git archive HEAD | tar -x -C "$1" ;;
    worktree) git ls-files --cached --others --exclude-standard -z | tar -c --null --files-from=- | tar -x -C "$1" ;;
    *) stop 2 "SOURCE: got \"$source\", expected commit or worktree" ;;
  esac
}

build() {  # the source in directory $1, as image $2; what is unpacked and what is run, to standard output
  local directory=$1 name=$2
  shift 2
  local given=(--build-arg "BASE_DIGEST=$BASE_DIGEST" --build-arg "SOURCE_REPO_COMMIT=$commit" --build-arg "SOURCE_REPO_URL=$url")
  [ -z "${BASE_IMAGE:-}" ] || given+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
  [ -z "${WEIGHTS:-}" ] || given+=(--build-arg "WEIGHTS=$WEIGHTS")
  given+=(--file "$directory/deploy/Dockerfile" "$@")
  case $builder in
    buildah | podman)
      # OCI's format has no HEALTHCHECK, which compose.yaml repeats; Docker's has the name of the build's container.
      # --timestamp: every file and the image itself have this time.
      "$builder" build --no-cache --format oci --identity-label=false --timestamp "$epoch" \
        --ignorefile "$directory/deploy/.dockerignore" --tag "$name" "${given[@]}" "$directory" >&2 || return 1
      # The id of an image is the digest of its configuration, which lists the layers.
      if [ "$builder" = buildah ]; then
        buildah inspect --type image \
          --format '{{range .OCIv1.RootFS.DiffIDs}}layer {{.}}{{"\n"}}{{end}}image sha256:{{.FromImageID}}{{"\n"}}' "$name"
      else
        podman image inspect --format '{{range .RootFS.Layers}}layer {{.}}{{"\n"}}{{end}}image sha256:{{.Id}}{{"\n"}}' "$name"
      fi
      ;;
    docker)
      docker buildx build --no-cache --provenance=false --sbom=false --build-arg "SOURCE_DATE_EPOCH=$epoch" \
        --output "type=oci,dest=$scratch/$name.tar,rewrite-timestamp=true" "${given[@]}" "$directory" >&2 || return 1
      python3 - "$scratch/$name.tar" << 'PYTHON'
import json, sys, tarfile
with tarfile.open(sys.argv[1]) as archive:
    def read(digest):
        return json.load(archive.extractfile("blobs/" + digest.replace(":", "/")))
    digest = json.load(archive.extractfile("index.json"))["manifests"][0]["digest"]
    manifest = read(digest)
    for layer in read(manifest["config"]["digest"])["rootfs"]["diff_ids"]:
        print("layer", layer)
    print("image", manifest["config"]["digest"])
    print("manifest", digest)
PYTHON
      ;;
  esac
}

say "with $builder, $source, commit $commit"
[ "$source" = commit ] && ! git diff --quiet HEAD && say "note: what is not committed is left out"
lay "$scratch/first"
(umask 077; lay "$scratch/second/in another place")  # neither the place nor the modes may show
build "$scratch/first" "$run-1" "$@" > "$scratch/1" || stop 2 "the first build failed"
sleep 2  # nor the time
build "$scratch/second/in another place" "$run-2" "$@" > "$scratch/2" || stop 2 "the second build failed"

cat "$scratch/1"
if ! diff "$scratch/1" "$scratch/2" > "$scratch/difference"; then
  cat "$scratch/difference"
  stop 1 "THE TWO BUILDS DIFFER"
fi
if [ -n "${EXPECT:-}" ] && ! grep -qF " $EXPECT" "$scratch/1"; then
  stop 1 "NOT AS EXPECTED: got the above, expected $EXPECT"
fi
say "the same twice; the images are called $run-1 and $run-2"

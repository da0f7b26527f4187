#!/bin/sh
# Makes the small images that examples and tests use, without a registry:
#
#   images/build.sh OUTPUT_FOLDER
#
# The results are docker-archive tarballs, the same bytes for the same inputs:
#   pause.tar  quorate.local/pause:1   the first process of every sandbox
#   web-1.tar  quorate.local/web:1     a page that tells its version and host
#   web-2.tar  quorate.local/web:2     the same, a version later
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
out=${1:?usage: images/build.sh OUTPUT_FOLDER}
busybox=${BUSYBOX:-/usr/bin/busybox}
[ -x "$busybox" ] || busybox=/bin/busybox

need() {
    command -v "$1" >/dev/null || { echo "images/build.sh: $1 is missing; install it: apt-get install $2" >&2; exit 1; }
}
need gcc gcc
need tar tar
need sha256sum coreutils
if [ ! -x "$busybox" ] || ldd "$busybox" >/dev/null 2>&1; then
    echo "images/build.sh: a static busybox is missing; install it: apt-get install busybox-static" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

case $(uname -m) in
    x86_64) arch=amd64 ;;
    aarch64) arch=arm64 ;;
    *) arch=$(uname -m) ;;
esac

# Times, owners and order are fixed, so that equal content has an equal digest.
pack() { # FOLDER FILE
    tar --create --file "$2" --directory "$1" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=ustar .
}

# Packs rootfs $work/$1 with the config fragment $3 as image $2 into $out/$1.tar.
image() { # NAME REFERENCE CONFIG_JSON
    mkdir -p "$work/image-$1"
    pack "$work/$1" "$work/image-$1/layer.tar"
    diff_id=$(sha256sum "$work/image-$1/layer.tar" | cut -d' ' -f1)
    printf '{"architecture":"%s","os":"linux","created":"1970-01-01T00:00:00Z","config":%s,"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$arch" "$3" "$diff_id" >"$work/image-$1/config.json"
    printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$2" >"$work/image-$1/manifest.json"
    pack "$work/image-$1" "$out/$1.tar.new"
    mv "$out/$1.tar.new" "$out/$1.tar"
    echo "$out/$1.tar: $2"
}

mkdir -p "$work/pause"
gcc -static -Os -s -Wall -Wextra -Werror -o "$work/pause/pause" "$here/pause.c"
image pause quorate.local/pause:1 '{"Entrypoint":["/pause"],"User":"65535:65535"}'

for version in 1 2; do
    root=$work/web-$version
    mkdir -p "$root/bin" "$root/etc" "$root/tmp" "$root/root"
    chmod 1777 "$root/tmp"
    cp "$busybox" "$root/bin/busybox"
    for applet in sh cat ls echo sleep env id ps wget nslookup ping hostname date kill true false mkdir rm touch \
        head tail grep sed awk vi top free df du mount stat tar tee wc sort xargs timeout nc ip test dd readlink; do
        ln -s busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    install -m 755 "$here/web.sh" "$root/bin/web"
    image "web-$version" "quorate.local/web:$version" \
        "{\"Env\":[\"PATH=/bin\",\"VERSION=$version\"],\"Cmd\":[\"/bin/web\"],\"ExposedPorts\":{\"8080/tcp\":{}},\"WorkingDir\":\"/\"}"
done

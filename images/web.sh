#!/bin/sh
# The web image: serves one page that tells which pod answers, and ends at once
# on SIGTERM (a first process has no default for it).
mkdir -p /tmp/www
{
    echo "<!doctype html><title>$HOSTNAME</title>"
    echo "<h1>quorate.local/web:$VERSION</h1>"
    echo "<p>served by $HOSTNAME</p>"
} >/tmp/www/index.html
printf 'ok\n' >/tmp/www/healthz
echo "web $VERSION on $HOSTNAME listens on port ${PORT:-8080}"
busybox httpd -f -v -p "${PORT:-8080}" -h /tmp/www &
server=$!
trap 'kill $server; exit 0' TERM INT
wait $server

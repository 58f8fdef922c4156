#!/usr/bin/env bash
# Runs each fuzz target for ten seconds, or for what FUZZTIME says. What it finds is written to testdata/fuzz: keep it
# there, since it then runs with all tests.
set -euo pipefail
cd "$(dirname "$0")/.."

tags=nobadger,nomysql,nopgx
for target in $(go test -tags "$tags" -list '^Fuzz' . | grep '^Fuzz'); do
	go test -tags "$tags" -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10s}" .
done

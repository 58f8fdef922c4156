#!/usr/bin/env bash
# Runs each fuzz target for ten seconds, or for what FUZZTIME says (20000x is 20,000 runs; a number of runs never ends in
# the middle of one, which Go may report as a failure). What it finds is written to testdata/fuzz: keep it
# there, since it then runs with all tests.
set -euo pipefail
cd "$(dirname "$0")/.."

tags=nobadger,nomysql,nopgx
for package in $(grep -rl --include='*_test.go' --exclude-dir=node_modules '^func Fuzz' . | xargs -n1 dirname | sort -u); do
	for target in $(go test -tags "$tags" -list '^Fuzz' "$package" | grep '^Fuzz'); do
		go test -tags "$tags" -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10s}" "$package"
	done
done

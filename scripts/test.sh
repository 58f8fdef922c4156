#!/usr/bin/env bash
# Runs all tests with the race detector, after installing what they need. Further arguments are flags of go test:
#
#	scripts/test.sh -run TestMint -count=1 -v
#
# A skipped test fails the run. Without -v, the output of a package is shown only if it fails.
set -euo pipefail
cd "$(dirname "$0")/.."

bash scripts/setup.sh

verbose=0
for arg in "$@"; do
	case $arg in -v | -v=true) verbose=1 ;; esac
done

# go test runs with -v always, as it reports skipped tests only then.
set +e
go test -race -tags nobadger,nomysql,nopgx -v ./... "$@" | awk -v verbose="$verbose" '
	/^ *=== / { reason = "" }
	/^ +[^ ]+\.go:[0-9]+: / { reason = $0 "\n" }
	/--- SKIP: / { skipped = skipped $0 "\n" reason }

	verbose { print; fflush(); next }
	/^(ok  |\?   |FAIL)\t/ || /^\t.*\tcoverage: / || /^FAIL$/ {
		if (/^FAIL/) printf "%s", output
		output = ""
		print; fflush(); next
	}
	/^ *=== (RUN|PAUSE|CONT) / || /^ *--- PASS: / || /^PASS$/ { next }
	{ output = output $0 "\n" }

	END {
		printf "%s", output
		if (skipped == "") exit 0
		printf "\nSkipped tests, which counts as a failure:\n%s", skipped
		exit 1
	}'
status=("${PIPESTATUS[@]}")
set -e

if [ "${status[0]}" -ne 0 ]; then
	exit "${status[0]}"
fi
exit "${status[1]}"

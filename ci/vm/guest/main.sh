# shellcheck shell=bash
# Runs the suite: standard output is the line of results.
set -euo pipefail

# shellcheck source=checks.sh
. /vm/checks.sh
# shellcheck source=lib.sh
. /vm/lib.sh
# shellcheck source=/dev/null
. "/vm/target-$TARGET.sh"

begin_checks
# shellcheck source=/dev/null
. /vm/suite.sh
echo "summary ran=$ran"

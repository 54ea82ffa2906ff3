#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# check.sh PAGE WORK COMPILER FLAGS...: every ```cpp block of the page compiles by itself; a block that holds main() is
# linked and run too, unless it says "// compile only".
set -eu
page=$1 work=$2 compiler=$3
shift 3
rm -rf "$work"; mkdir -p "$work"
awk -v work="$work" '/^ *```cpp *$/ {n++; file = sprintf("%s/%02d.cpp", work, n); on = 1; next} /^ *``` *$/ {on = 0} on {print > file}' "$page"
blocks=0
for file in "$work"/*.cpp; do
    [ -e "$file" ] || break
    blocks=$((blocks + 1))
    if grep -q 'int main' "$file" && ! grep -q '// compile only' "$file"; then
        "$compiler" -std=c++20 -Wall -Wextra "$@" "$file" -o "$work/program" -pthread
        (cd "$work" && ./program)
    else
        "$compiler" -std=c++20 -Wall -Wextra -fsyntax-only "$@" "$file"
    fi
done
echo "$page: $blocks blocks compiled"
[ $blocks -gt 0 ]

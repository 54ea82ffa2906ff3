#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# check.sh COMPILER FILE: the file must fail with exactly one `error:` line that holds its `// expect:` text; good.cpp compiles.
set -u
here=$(dirname "$0")
want=$(sed -n 's,^// expect: ,,p' "$2")
got=$("$1" -std=c++20 -Wall -Wextra -fsyntax-only -I"$here/../../include" "$2" 2>&1)
status=$?
if [ "$want" = nothing ]; then
    [ $status -eq 0 ] && [ -z "$got" ] && exit 0
    echo "$got"; exit 1
fi
if [ $status -eq 0 ]; then echo "$2 compiled, expected: $want"; exit 1; fi
errors=$(grep 'error:' <<<"$got")
# The author's own static_assert shows its condition in the line that the compiler quotes, not in the message.
case $(basename "$2") in author_*) where=$got ;; *) where=$errors ;; esac
if [ "$(wc -l <<<"$errors")" -ne 1 ] || ! grep -qF "$want" <<<"$where"; then
    echo "expected one line with: $want"; echo "got:"; echo "$errors"; exit 1
fi

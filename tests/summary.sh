#!/bin/sh
# Reads what `cargo test` printed (files given, or standard input) and prints one last line for all of it:
#   N passed, N failed, N skipped
# A test that found something missing in the kernel prints "skipped: …" and counts as skipped instead of passed.
# Ends with 1 when a test failed, or when there was none at all.
cat -- "$@" | awk '
    /^test result: / {
        for (i = 1; i <= NF; i++) {
            if ($i ~ /^passed/) passed += $(i - 1)
            if ($i ~ /^failed/) failed += $(i - 1)
            if ($i ~ /^ignored/) ignored += $(i - 1)
        }
    }
    /skipped: / { skipped++; why[$0] = 1 }
    /^error: could not compile/ || /^error: test run failed/ || /\(signal: / { broken++ }
    END {
        for (line in why) { sub(/^.*skipped: /, "", line); print "skipped: " line }
        passed -= skipped
        printf "%d passed, %d failed, %d skipped\n", passed, failed + broken, skipped + ignored
        exit (failed + broken > 0 || passed <= 0)
    }'

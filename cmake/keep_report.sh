#!/bin/sh
# Runs a compiler and keeps what it says beside the object it makes, as OBJECT.log: ptxas tells the registers and spills
# of each kernel only while it compiles.
object=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"
"$@" 2> "$object.log.part"
status=$?
# The report itself is long and for a script; everything else is for the reader.
grep -v -E "^ptxas info|^ +[0-9]+ bytes stack frame|^[0-9]+ bytes (stack|gmem|cmem)" "$object.log.part" >&2
mv "$object.log.part" "$object.log"
exit $status

# Makes the archives of the test vectors in docs/reference/layers.md in the current directory, with GNU tar.
set -eu
umask 022
pack() { # NAME DIRECTORY
  tar --format=gnu --sort=name --mtime=@1700000000 --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -S --blocking-factor=20 -C "$2" -cf "$1" .
}
head -c 10240 /dev/zero >empty.tar

mkdir -p files/dir
printf 'hello\n' >files/dir/hello
ln files/dir/hello files/again
ln -s dir/hello files/link
seq 1 20000 >files/numbers
truncate -s 1000000 files/holes
printf 'end' >>files/holes
pack files.tar files

mkdir -p "whiteouts/opaque" "whiteouts/$(printf 'long%.0s' $(seq 1 60))"
: >whiteouts/.wh.gone
: >whiteouts/opaque/.wh..wh..opq
seq -f 'entry-%g' 1 500 | (cd whiteouts/opaque && xargs touch)
pack whiteouts.tar whiteouts

// Package snapshotter tests cloister-snapshotter from outside: by containerd's own suite, and with containerd 1.6 and 2.x.
package snapshotter

// Command cloister-guest is everything that runs in the pod's machine: as PID 1 the whole guest, and inside a sandbox
// container the program that keeps it alive.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/guest/boot"
)

// version is set by the build.
var version = "devel"

func main() {
	// The first thread stays with this goroutine: /proc/self describes it, and no other code may change its namespaces.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	defer stop()
	switch {
	case len(args) == 1 && args[0] == "version":
		fmt.Fprintln(stdout, "cloister-guest", version)
		return 0
	case len(args) == 1 && args[0] == "pause":
		<-ctx.Done()
		return 0
	case os.Getpid() == 1:
		// The kernel passes command line words it does not know as arguments; they are read from /proc/cmdline.
		boot.Run(ctx, version)
	}
	fmt.Fprintln(stderr, "usage: cloister-guest version | pause\nWithout arguments it is the init of a pod's machine and runs only as process 1.")
	return 2
}

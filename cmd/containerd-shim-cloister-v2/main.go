// Command containerd-shim-cloister-v2 is what containerd and CRI-O start for each pod that shall run in a virtual machine.
package main

import (
	"context"
	"io"
	"os"

	"github.com/sirupsen/logrus"

	"github.com/cloister/cloister/host/shim"
)

// version is the one version number of the module.
const version = "0.1.0"

func main() {
	// The ttrpc library tells this global logger of each message that answers nothing. A guest can send as many as it likes, and stderr is
	// containerd's log, or a fifo that nobody reads while containerd restarts.
	logrus.SetOutput(io.Discard)
	os.Exit(shim.Main(context.Background(), os.Args[1:], version))
}

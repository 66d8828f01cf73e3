// Command containerd-shim-cloister-v2 is what containerd and CRI-O start for each pod that shall run in a virtual machine.
package main

import (
	"context"
	"os"

	"github.com/cloister/cloister/host/shim"
)

// version is the one version number of the module.
const version = "0.1.0"

func main() { os.Exit(shim.Main(context.Background(), os.Args[1:], version)) }

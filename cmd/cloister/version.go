package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version is the one version number of all binaries of this module.
const Version = "0.1.0"

func versionCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and the protocol versions",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			info := map[string]string{
				"version": Version, "kbs_protocol": "0.4.0", "kata_agent": "4.1", "initdata": "0.1.0",
				"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
			}
			if build, ok := debug.ReadBuildInfo(); ok {
				for _, s := range build.Settings {
					if s.Key == "vcs.revision" {
						info["commit"] = s.Value
					}
				}
			}
			if a.json {
				return a.printJSON(info)
			}
			fmt.Fprintf(a.stdout, "cloister %s (KBS protocol %s, kata agent protocol %s, initdata %s, %s)\n",
				info["version"], info["kbs_protocol"], info["kata_agent"], info["initdata"], info["go"])
			return nil
		},
	}
}

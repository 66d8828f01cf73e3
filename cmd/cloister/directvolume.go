package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/host/volume"
)

// directCmd announces volumes whose disk the guest mounts itself. CSI drivers write the same files.
func directCmd(a *app) *cobra.Command {
	return group("direct-volume", "Give disks to pods without mounting them on the host", directAddCmd(a), directRemoveCmd(a), directListCmd(a))
}

// directFlags are those that all of them have.
func directFlags(c *cobra.Command, dir, path *string) {
	c.Flags().StringVar(dir, "dir", volume.DefaultDirectDir, "the directory of announcements")
	if path != nil {
		c.Flags().StringVar(path, "volume-path", "", "the path that containers mount, for example a PersistentVolume's target path")
		_ = c.MarkFlagRequired("volume-path")
	}
}

func directAddCmd(a *app) *cobra.Command {
	var dir, path, info string
	c := &cobra.Command{
		Use:   "add",
		Short: "Announce a volume and the disk behind it",
		Long: "Announces a volume: a container that mounts --volume-path gets the disk of --mount-info, which its guest mounts. The\n" +
			"description is JSON as for Kata Containers, for example\n" +
			`  {"volume-type":"blk","device":"/dev/sdb","fstype":"ext4","options":["noatime"],"metadata":{"fsGroup":"2000"}}`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			text := []byte(info)
			if info == "-" {
				var err error
				if text, err = io.ReadAll(io.LimitReader(a.stdin, 1<<20)); err != nil {
					return fmt.Errorf("reading the description: %w", err)
				}
			}
			return volume.AddDirect(dir, path, text)
		},
	}
	directFlags(c, &dir, &path)
	c.Flags().StringVar(&info, "mount-info", "", "the description as JSON; - reads it from standard input")
	_ = c.MarkFlagRequired("mount-info")
	return c
}

func directRemoveCmd(*app) *cobra.Command {
	var dir, path string
	c := &cobra.Command{
		Use:   "remove",
		Short: "Take an announcement back; pods that have the volume keep it",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return volume.RemoveDirect(dir, path)
		},
	}
	directFlags(c, &dir, &path)
	return c
}

func directListCmd(a *app) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the announced volumes and the sizes of their disks",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			list, err := volume.ListDirect(dir)
			if err != nil {
				return err
			}
			if a.json {
				if list == nil {
					list = []volume.DirectVolume{}
				}
				return a.printJSON(list)
			}
			var rows [][]string
			for _, v := range list {
				row := []string{printable(v.Path), "-", "-", "-", printable(v.Problem)}
				if v.Info != nil {
					row[1], row[2] = printable(v.Info.Device), printable(v.Info.FSType)
				}
				if v.Bytes > 0 {
					row[3] = strconv.FormatInt(v.Bytes, 10)
				}
				rows = append(rows, row)
			}
			a.table("VOLUME|DEVICE|FILE SYSTEM|BYTES|PROBLEM", rows)
			return nil
		},
	}
	directFlags(c, &dir, nil)
	return c
}

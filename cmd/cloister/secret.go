package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/client"
	"github.com/cloister/cloister/broker/resource"
)

func secretCmd(a *app) *cobra.Command {
	return group("secret", "Put secrets into the broker, for attested guests",
		secretPutCmd(a), secretGetCmd(a), secretRotateCmd(a), secretListCmd(a), secretSealCmd(a), secretRemoveCmd(a))
}

func secretPutCmd(a *app) *cobra.Command {
	var allowEmpty bool
	c := &cobra.Command{
		Use: "put URI FILE", Short: "Put the bytes of FILE into the broker as kbs:///repository/type/tag", Args: exactly(2),
		Long: "What is there becomes the version before: guests get the newest one, and may ask for older ones by number as long as\n" +
			"the broker keeps them and its resource policy allows it.",
		RunE: func(c *cobra.Command, args []string) error {
			path, err := resourcePath(args[0])
			if err != nil {
				return err
			}
			secret, err := os.ReadFile(args[1])
			if err != nil {
				return fmt.Errorf("reading the secret: %w", err)
			}
			if len(secret) == 0 && !allowEmpty {
				return hint(fmt.Errorf("the secret in %s has 0 bytes", args[1]), "if that is meant: --allow-empty")
			}
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			if err := client.PutResource(c.Context(), path, secret); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"resource": "kbs:///" + path, "bytes": len(secret)})
			}
			fmt.Fprintf(a.stdout, "kbs:///%s: %d bytes\n", path, len(secret))
			return nil
		},
	}
	c.Flags().BoolVar(&allowEmpty, "allow-empty", false, "also put a file of 0 bytes")
	a.broker.add(c)
	return c
}

func secretGetCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "get URI", Short: "Show the versions of a secret: numbers, sizes and times, never its value", Args: exactly(1),
		Long: "Shows what there is to know about a secret without knowing it. The value is not to be had, by no flag and no role:\n" +
			"the broker gives it to attested guests only, encrypted to a key that is in the guest. Whoever may put secrets can\n" +
			"replace one, and `secret rotate` makes one that no person has ever seen. To see that a guest gets it, read it inside\n" +
			"the pod: http://127.0.0.1:8006/cdh/resource/REPOSITORY/TYPE/TAG.",
		RunE: func(c *cobra.Command, args []string) error {
			path, err := resourcePath(args[0])
			if err != nil {
				return err
			}
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			info, err := broker.Resource(c.Context(), path)
			if errors.Is(err, client.ErrNoResource) {
				return hint(err, "`cloister secret list` shows what there is")
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(info)
			}
			fmt.Fprintf(a.stdout, "kbs:///%s\n", info.Path)
			var rows [][]string
			for i, v := range info.Versions {
				note := ""
				if i == 0 {
					note = "newest: what guests get"
				}
				rows = append(rows, []string{strconv.FormatUint(v.Number, 10), sizeOf(v), timeOf(v.Time), note})
			}
			a.table("VERSION|BYTES|WRITTEN|", rows)
			fmt.Fprintln(a.stderr, "hint: the value is shown to nobody: attested guests get it, encrypted")
			return nil
		},
	}
	a.broker.add(c)
	return c
}

func secretRotateCmd(a *app) *cobra.Command {
	var size int
	c := &cobra.Command{
		Use: "rotate URI", Short: "Let the broker replace a secret by random bytes that no person sees", Args: exactly(1),
		Long: "The broker makes a new version of random bytes. Nobody but attested guests gets to know them, so this is for keys and\n" +
			"passwords that only guests use; what has to be known elsewhere too, put with `secret put`. Guests that have read the\n" +
			"old version keep it until they ask again.",
		RunE: func(c *cobra.Command, args []string) error {
			path, err := resourcePath(args[0])
			if err != nil {
				return err
			}
			if size < 0 || size > resource.MaxSize {
				return usageError{fmt.Errorf("--size is %d, want 1 to %d bytes, or 0 for the size of today", size, resource.MaxSize)}
			}
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			v, err := client.RotateResource(c.Context(), path, size)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(struct {
					Resource string `json:"resource"`
					resource.Version
				}{"kbs:///" + path, v})
			}
			fmt.Fprintf(a.stdout, "kbs:///%s: version %d, %s bytes\n", path, v.Number, sizeOf(v))
			return nil
		},
	}
	c.Flags().IntVar(&size, "size", 0, "number of random bytes (default: as many as the newest version has)")
	a.broker.add(c)
	return c
}

func secretListCmd(a *app) *cobra.Command {
	var long bool
	c := &cobra.Command{
		Use: "list [PREFIX]", Short: "List the names of the secrets of the broker", Args: cobra.MaximumNArgs(1),
		Long: "PREFIX is kbs:/// with the first one or two parts of the names wanted. Values are not shown; see `secret get --help`.",
		RunE: func(c *cobra.Command, args []string) error {
			prefix := ""
			if len(args) == 1 {
				p, ok := strings.CutPrefix(args[0], "kbs:///")
				if !ok {
					return usageError{fmt.Errorf("%q: want kbs:///repository or kbs:///repository/type", args[0])}
				}
				prefix = strings.TrimSuffix(p, "/")
			}
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			list, err := client.Resources(c.Context(), prefix)
			if err != nil {
				return err
			}
			if a.json {
				return a.printSecretsJSON(list, long)
			}
			if !long {
				for _, r := range list {
					fmt.Fprintf(a.stdout, "kbs:///%s\n", r.Path)
				}
				return nil
			}
			var rows [][]string
			for _, r := range list {
				row := []string{"kbs:///" + r.Path, fmt.Sprint(len(r.Versions)), "", ""}
				if len(r.Versions) > 0 {
					row[2], row[3] = sizeOf(r.Versions[0]), timeOf(r.Versions[0].Time)
				}
				rows = append(rows, row)
			}
			a.table("SECRET|VERSIONS|BYTES|WRITTEN", rows)
			return nil
		},
	}
	c.Flags().BoolVarP(&long, "long", "l", false, "also show versions, sizes and times")
	a.broker.add(c)
	return c
}

// printSecretsJSON prints names, or with long all that is known.
func (a *app) printSecretsJSON(list []resource.Info, long bool) error {
	if long {
		return a.printJSON(list)
	}
	paths := []string{}
	for _, r := range list {
		paths = append(paths, r.Path)
	}
	return a.printJSON(paths)
}

func secretRemoveCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "rm URI", Short: "Remove a secret with all its versions from the broker", Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			path, err := resourcePath(args[0])
			if err != nil {
				return err
			}
			client, err := a.broker.client()
			if err != nil {
				return err
			}
			if err := client.DeleteResource(c.Context(), path); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"resource": "kbs:///" + path, "removed": true})
			}
			fmt.Fprintf(a.stdout, "kbs:///%s: removed\n", path)
			return nil
		},
	}
	a.broker.add(c)
	return c
}

func resourcePath(uri string) (string, error) {
	path, ok := strings.CutPrefix(uri, "kbs:///")
	if !ok || strings.Count(path, "/") != 2 {
		return "", usageError{fmt.Errorf("%q: want kbs:///repository/type/tag", uri)}
	}
	return path, nil
}

func sizeOf(v resource.Version) string {
	if v.Size < 0 {
		return "?"
	}
	return strconv.Itoa(v.Size)
}

func timeOf(t time.Time) string {
	if t.IsZero() {
		return "before there were versions"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

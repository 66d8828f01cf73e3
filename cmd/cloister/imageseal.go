package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/image"
)

func imageSealCmd(a *app) *cobra.Command {
	var keyFile, keyID string
	var insecure []string
	c := &cobra.Command{
		Use:   "seal SOURCE DESTINATION",
		Short: "Make encrypted and authenticated block layers of an image, which attested guests read without pulling them",
		Args:  exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			key, err := os.ReadFile(keyFile)
			if err != nil {
				return hint(fmt.Errorf("reading the image key: %w", err), "make one with `cloister key new %s`", keyFile)
			}
			if len(key) != 32 {
				return hint(fmt.Errorf("the image key in %s has %d bytes, want 32", keyFile, len(key)), "make one with `cloister key new FILE`")
			}
			done, err := image.Seal(c.Context(), args[0], args[1], image.Key{KID: keyID, KEK: key},
				image.EncryptOptions{Options: registryOptions(args[1], insecure)})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			fmt.Fprintf(a.stdout, "%s@%s, %d layer(s) sealed for %s\n", args[1], done.Digest, len(done.Layers), keyID)
			var rows [][]string
			for i, l := range done.Layers {
				rows = append(rows, []string{strconv.Itoa(i + 1), mega(l.Size), l.Root})
			}
			a.table("LAYER|SIZE|ROOT HASH", rows)
			return nil
		},
	}
	c.Flags().StringVar(&keyFile, "key", "", "file with the 32-byte image key")
	c.Flags().StringVar(&keyID, "key-id", "", "kbs:/// resource the guest will get the key from")
	addInsecureRegistry(c, &insecure)
	needs(c, "key", "key-id")
	return c
}

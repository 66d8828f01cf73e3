package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/image"
)

// imageKeyCmd is a command that copies an image to another place and changes its layers with an image key, which the guest gets
// from the broker.
func imageKeyCmd(use, short string, change func(ctx context.Context, src, dst string, key image.Key, opts image.EncryptOptions) error) *cobra.Command {
	var keyFile, keyID string
	var insecure []string
	c := &cobra.Command{
		Use: use + " SOURCE DESTINATION", Short: short, Args: exactly(2),
		RunE: func(c *cobra.Command, args []string) error {
			key, err := readFile(keyFile)
			if err != nil {
				return hint(fmt.Errorf("reading the image key: %w", err), "make one with `cloister key new %s`", keyFile)
			}
			if len(key) != 32 {
				return hint(fmt.Errorf("the image key in %s has %d bytes, want 32", keyFile, len(key)), "make one with `cloister key new FILE`")
			}
			return change(c.Context(), args[0], args[1], image.Key{KID: keyID, KEK: key}, image.EncryptOptions{Options: image.Options{PlainHTTP: insecure}})
		},
	}
	c.Flags().StringVar(&keyFile, "key", "", "file with the 32-byte image key")
	c.Flags().StringVar(&keyID, "key-id", "", "kbs:/// resource the guest will get the key from")
	addInsecureRegistry(c, &insecure)
	needs(c, "key", "key-id")
	return c
}

func imageEncryptCmd(a *app) *cobra.Command {
	return imageKeyCmd("encrypt", "Encrypt every layer of an image, so that only an attested guest can read it",
		func(ctx context.Context, src, dst string, key image.Key, opts image.EncryptOptions) error {
			done, err := image.Encrypt(ctx, src, dst, []image.Key{key}, opts)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s@%s, %d layer(s) encrypted for %s\n", dst, done.Digest, done.Layers, key.KID)
			return nil
		})
}

func imageSealCmd(a *app) *cobra.Command {
	return imageKeyCmd("seal", "Make encrypted and authenticated block layers of an image, which attested guests read without pulling them",
		func(ctx context.Context, src, dst string, key image.Key, opts image.EncryptOptions) error {
			done, err := image.Seal(ctx, src, dst, key, opts)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			fmt.Fprintf(a.stdout, "%s@%s, %d layer(s) sealed for %s\n", dst, done.Digest, len(done.Layers), key.KID)
			var rows [][]string
			for i, l := range done.Layers {
				rows = append(rows, []string{strconv.Itoa(i + 1), mega(l.Size), l.Root})
			}
			a.table("LAYER|SIZE|ROOT HASH", rows)
			return nil
		})
}

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/sealedsecret"
)

func secretSealCmd(a *app) *cobra.Command {
	var keyFile, keyID, out string
	c := &cobra.Command{
		Use: "seal URI", Short: "Make the text that stands for a secret of the broker in variables and files of pods", Args: exactly(1),
		Long: "Prints a sealed secret: a text that may be in a manifest, since it only names the secret kbs:///repository/type/tag. The\n" +
			"guest puts the broker's secret in its place. It is signed, so that the host cannot name another: the guest fetches the\n" +
			"signer's public key from the broker, from the resource --key-id, where `cloister key jwk` and `cloister secret put` put it.\n" +
			"No broker is asked here.",
		RunE: func(_ *cobra.Command, args []string) error {
			for _, uri := range []string{args[0], keyID} {
				if err := sealedsecret.CheckURI(uri); err != nil {
					return usageError{err}
				}
			}
			text, err := os.ReadFile(keyFile)
			if err != nil {
				return hint(fmt.Errorf("reading the signing key: %w", err), "make one with `cloister key new --type signing %s`", keyFile)
			}
			key, err := sealedsecret.ParsePrivate(text)
			if err != nil {
				return hint(fmt.Errorf("reading the signing key in %s: %w", keyFile, err), "make one with `cloister key new --type signing FILE`")
			}
			sealed, err := sealedsecret.Seal(key, keyID, args[0])
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]string{"resource": args[0], "key_id": keyID, "sealed": sealed})
			}
			return a.write(out, []byte(sealed+"\n"))
		},
	}
	c.Flags().StringVar(&keyFile, "key", "", "PEM file with the signer's private key (ECDSA P-256)")
	c.Flags().StringVar(&keyID, "key-id", "", "kbs:/// resource the guest will get the signer's public key from")
	addOutput(c, &out)
	needs(c, "key", "key-id")
	return c
}

func keyJWKCmd(a *app) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "jwk FILE", Short: "Print the public part of a signing key as the broker needs it for sealed secrets", Args: exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("reading the key: %w", err)
			}
			key, err := sealedsecret.ParsePublic(text)
			if err != nil {
				return hint(fmt.Errorf("reading the key in %s: %w", args[0], err), "make one with `cloister key new --type signing FILE`")
			}
			jwk, err := sealedsecret.JWK(key)
			if err != nil {
				return hint(fmt.Errorf("the key in %s: %w", args[0], err), "make one with `cloister key new --type signing FILE`")
			}
			return a.write(out, append(jwk, '\n'))
		},
	}
	addOutput(c, &out)
	return c
}

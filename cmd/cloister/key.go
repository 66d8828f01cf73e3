package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func keyCmd(a *app) *cobra.Command {
	return group("key", "Make keys for images and sealed secrets", keyNewCmd(a), keyJWKCmd(a))
}

// keyNewCmd makes a 32-byte image key or an ECDSA P-256 signing pair. It never overwrites: a lost key is a lost image.
func keyNewCmd(a *app) *cobra.Command {
	var kind string
	c := &cobra.Command{
		Use:   "new FILE",
		Short: "Make an image encryption key, or a signing key pair (FILE and FILE.pub)",
		Args:  exactly(1),
		RunE: func(_ *cobra.Command, args []string) error {
			file := args[0]
			switch kind {
			case "image":
				key := make([]byte, 32)
				if _, err := rand.Read(key); err != nil {
					return fmt.Errorf("making the key: %w", err)
				}
				if err := createFile(file, key, 0o600); err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "%s: 256-bit image key\n", file)
			case "signing":
				key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
				if err != nil {
					return fmt.Errorf("making the key: %w", err)
				}
				private, err := x509.MarshalPKCS8PrivateKey(key)
				if err != nil {
					return fmt.Errorf("encoding the private key: %w", err)
				}
				public, err := x509.MarshalPKIXPublicKey(key.Public())
				if err != nil {
					return fmt.Errorf("encoding the public key: %w", err)
				}
				if err := createFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600); err != nil {
					return err
				}
				if err := createFile(file+".pub", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644); err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "%s: ECDSA P-256 signing key, public part in %s.pub\n", file, file)
			default:
				return usageError{fmt.Errorf("unknown key type %q: want image or signing", kind)}
			}
			return nil
		},
	}
	c.Flags().StringVar(&kind, "type", "image", "image (32 bytes) or signing (ECDSA P-256)")
	return c
}

// createFile writes a new file and fails if there is one already.
func createFile(name string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return hint(fmt.Errorf("creating %s: %w", name, err), "an existing key is never overwritten, choose another name or remove it")
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		os.Remove(name)
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return f.Close()
}

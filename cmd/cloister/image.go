package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/spf13/cobra"

	"github.com/cloister/cloister/author/image"
	"github.com/cloister/cloister/internal/testregistry"
)

func imageCmd(a *app) *cobra.Command {
	verbs := []*cobra.Command{imageBuildCmd(a), imageEncryptCmd(a), imageSealCmd(a), imageSignCmd(a), imageInspectCmd(a)}
	for _, c := range verbs {
		run := c.RunE
		c.RunE = func(c *cobra.Command, args []string) error { return registryHint(run(c, args)) }
	}
	return group("image", "Build, encrypt, seal, sign and inspect images", append(verbs, imageRegistryCmd(a))...)
}

// registryHint says what to do about what a registry does not do.
func registryHint(err error) error {
	var plain *image.PlainHTTPError
	var refused *transport.Error
	var has hintError
	switch {
	case err == nil, errors.As(err, &has):
		return err
	case errors.As(err, &plain):
		return hint(err, "allow it by --insecure-registry %s", plain.Host)
	case errors.Is(err, syscall.ECONNREFUSED):
		return hint(err, "is the registry running, and its port right")
	case errors.As(err, &refused) && (refused.StatusCode == http.StatusUnauthorized || refused.StatusCode == http.StatusForbidden) && refused.Request != nil:
		return loginHint(err, refused.Request.URL.Host)
	}
	return err
}

func loginHint(err error, registry string) error {
	return hint(err, "credentials are docker's: `docker login %s`, or a config.json in the folder that DOCKER_CONFIG names", registry)
}

func imageBuildCmd(a *app) *cobra.Command {
	var (
		files, insecure, env []string
		dir, compression     string
		entrypoint           []string
	)
	c := &cobra.Command{
		Use:   "build REFERENCE",
		Short: "Make an image from files on this machine, with the shared libraries they need, and push it",
		Args:  exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			spec := image.Spec{Dir: dir, Files: map[string]string{}, Libraries: true, Compression: compression, Entrypoint: entrypoint, Env: env}
			for _, f := range files {
				from, to, ok := strings.Cut(f, ":")
				if !ok {
					to = from
				}
				spec.Files[to] = from
			}
			img, err := image.Build(spec)
			if err != nil {
				return err
			}
			digest, err := image.Push(c.Context(), img, args[0], image.Options{PlainHTTP: insecure})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s@%s\n", args[0], digest)
			return nil
		},
	}
	c.Flags().StringArrayVar(&files, "file", nil, "FILE or FILE:PATH-IN-IMAGE (repeatable)")
	c.Flags().StringVar(&dir, "dir", "", "folder that becomes the root of the image")
	c.Flags().StringVar(&compression, "compression", "gzip", "gzip, zstd or none")
	c.Flags().StringArrayVar(&entrypoint, "entrypoint", nil, "word of the entry point (repeatable)")
	c.Flags().StringArrayVar(&env, "env", nil, "NAME=VALUE of the image (repeatable)")
	addInsecureRegistry(c, &insecure)
	return c
}

func imageSignCmd(a *app) *cobra.Command {
	var keyFile, identity string
	var insecure []string
	c := &cobra.Command{
		Use:   "sign REFERENCE",
		Short: "Sign an image with a key, in cosign's format",
		Args:  exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			key, err := readFile(keyFile)
			if err != nil {
				return hint(fmt.Errorf("reading the signing key: %w", err), "make one with `cloister key new --type signing %s`", keyFile)
			}
			signed, err := image.Sign(c.Context(), args[0], key, image.SignOptions{Options: image.Options{PlainHTTP: insecure}, Identity: identity})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "%s signed: %s\n", signed.Reference, signed.Signature)
			return nil
		},
	}
	c.Flags().StringVar(&keyFile, "key", "", "PEM file with the private key")
	c.Flags().StringVar(&identity, "identity", "", "repository the signature is for (default: the image's)")
	addInsecureRegistry(c, &insecure)
	needs(c, "key")
	return c
}

func imageInspectCmd(a *app) *cobra.Command {
	var insecure []string
	c := &cobra.Command{
		Use: "inspect REFERENCE", Short: "Print layers, keys and signatures of an image", Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			info, err := image.Inspect(c.Context(), args[0], image.Options{PlainHTTP: insecure})
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(info)
			}
			fmt.Fprintf(a.stdout, "%s@%s\n", info.Reference, info.Digest)
			var rows [][]string
			for _, p := range info.Platforms {
				for _, l := range p.Layers {
					key := "not encrypted"
					if l.Encrypted {
						key = printable(strings.Join(l.KeyIDs, " "))
					}
					if l.Sealed {
						key += " (sealed)"
					}
					rows = append(rows, []string{p.OS + "/" + p.Architecture, l.Digest, mega(l.Size), key})
				}
			}
			a.table("PLATFORM|LAYER|SIZE|KEY", rows)
			for _, s := range info.Signatures {
				fmt.Fprintf(a.stdout, "signature %s for %s (not verified here)\n", s.Tag, s.Identity)
			}
			return nil
		},
	}
	addInsecureRegistry(c, &insecure)
	return c
}

func imageRegistryCmd(a *app) *cobra.Command {
	var listen, dir string
	c := &cobra.Command{
		Use: "registry", Short: "Serve a small OCI registry for tests and demos, plain HTTP, until stopped", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if dir != "" {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return fmt.Errorf("making the registry's folder: %w", err)
				}
			}
			r, err := testregistry.Start(testregistry.Options{Addr: listen, Dir: dir})
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stdout, "registry: listening on %s (plain HTTP, no authentication)\n", r.Addr())
			<-c.Context().Done()
			return r.Close()
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:5000", "address to listen on")
	c.Flags().StringVar(&dir, "dir", "", "keep blobs in this folder instead of in memory")
	return c
}

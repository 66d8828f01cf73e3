package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

// DefaultFile is read when no other is named and it is there.
const DefaultFile = "/etc/cloister/snapshotter.toml"

// usageError is a mistake in how the program was called.
type usageError struct{ error }

// Main is the program cloister-snapshotter. It returns the exit code: 0 done, 1 failed, 2 wrong use.
func Main(ctx context.Context, args []string, version string, stdout, stderr io.Writer) int {
	logrus.SetOutput(io.Discard) // what containerd's libraries say stands in our own errors, too
	root := rootCmd(version, stderr)
	started := false // a command was found, its flags and arguments were right
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	called, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "cloister-snapshotter: error: %v\n", err)
	var usage usageError
	if errors.As(err, &usage) || !started {
		fmt.Fprintf(stderr, "hint: see `%s --help`\n", called.CommandPath())
		return 2
	}
	return 1
}

// noArgs is cobra.NoArgs, which calls an argument an unknown command.
func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no arguments, got %q", c.CommandPath(), args[0])
	}
	return nil
}

func rootCmd(version string, stderr io.Writer) *cobra.Command {
	c := &cobra.Command{
		Use: "cloister-snapshotter", Version: version, SilenceUsage: true, SilenceErrors: true,
		Short: "containerd's snapshotter for integrity-protected block layers",
	}
	c.CompletionOptions.DisableDefaultCmd = true
	c.AddCommand(serveCmd(stderr), verifyCmd(), removeCmd(stderr), configCmd())
	return c
}

// settings are the flags that each command has.
type settings struct {
	file string
	cfg  Config
}

func (f *settings) flags(c *cobra.Command) {
	c.Flags().StringVarP(&f.file, "file", "f", "", "the configuration (default "+DefaultFile+" if it is there)")
	d := Default()
	c.Flags().StringVar(&f.cfg.Root, "root", d.Root, "directory of everything that is kept")
	c.Flags().StringVar(&f.cfg.Socket, "socket", d.Socket, "socket that containerd speaks to")
	c.Flags().StringVar(&f.cfg.Containerd, "containerd", d.Containerd, "socket of containerd")
	c.Flags().StringVar(&f.cfg.Mounts, "mounts", d.Mounts, "overlay: layers are mounted on the host; erofs: containerd 2.2 does it")
	c.Flags().StringVar(&f.cfg.Recipe, "recipe", d.Recipe, RecipeCloister+" or "+RecipeContainerd)
}

// load reads the file; flags that were given replace what it says.
func (f *settings) load(c *cobra.Command) (Config, error) {
	cfg := Default()
	file := f.file
	if file == "" {
		if _, err := os.Stat(DefaultFile); err == nil {
			file = DefaultFile
		}
	}
	if file != "" {
		var err error
		if cfg, err = Load(file); err != nil {
			return cfg, err
		}
	}
	for name, v := range map[string]struct{ to, from *string }{
		"root": {&cfg.Root, &f.cfg.Root}, "socket": {&cfg.Socket, &f.cfg.Socket}, "containerd": {&cfg.Containerd, &f.cfg.Containerd},
		"mounts": {&cfg.Mounts, &f.cfg.Mounts}, "recipe": {&cfg.Recipe, &f.cfg.Recipe},
	} {
		if c.Flags().Changed(name) {
			*v.to = *v.from
		}
	}
	if err := cfg.Validate(); err != nil {
		return cfg, usageError{err}
	}
	return cfg, nil
}

func serveCmd(stderr io.Writer) *cobra.Command {
	var f settings
	var debug bool
	c := &cobra.Command{
		Use: "serve", Short: "Answer containerd until SIGTERM", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.load(c)
			if err != nil {
				return err
			}
			level := slog.LevelInfo
			if debug {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
			s, err := Open(c.Context(), cfg, log)
			if err != nil {
				return err
			}
			err = s.Serve(c.Context(), func() {
				log.Info("serving", "socket", cfg.Socket, "root", cfg.Root, "recipe", cfg.Recipe, "mounts", cfg.Mounts)
				if err := tellSystemd(os.Getenv("NOTIFY_SOCKET")); err != nil {
					log.Warn("telling systemd that it is ready", "error", err)
				}
			})
			return errors.Join(err, s.Close())
		},
	}
	f.flags(c)
	c.Flags().BoolVar(&debug, "debug", false, "log more")
	return c
}

// tellSystemd says that the service is ready, by the protocol of sd_notify(3).
func tellSystemd(socket string) error {
	if socket == "" {
		return nil
	}
	if socket[0] == '@' {
		socket = "\x00" + socket[1:]
	}
	conn, err := net.Dial("unixgram", socket)
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte("READY=1"))
	return errors.Join(err, conn.Close())
}

func configCmd() *cobra.Command {
	return &cobra.Command{
		Use: "config", Short: "Print a configuration with each setting and its default", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(Example())
			return err
		},
	}
}

func verifyCmd() *cobra.Command {
	var f settings
	c := &cobra.Command{
		Use: "verify", Short: "Read all layers and compare them with their root hashes", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.load(c)
			if err != nil {
				return err
			}
			return Verify(c.Context(), cfg, c.OutOrStdout())
		},
	}
	f.flags(c)
	return c
}

func removeCmd(stderr io.Writer) *cobra.Command {
	var f settings
	c := &cobra.Command{
		Use: "remove", Short: "Remove everything that the snapshotter has on this node", Args: noArgs,
		Long: "Unmounts all layers and removes the root directory and the socket. The server has to be stopped, and containerd has to have\n" +
			"removed all containers and images of this snapshotter before; if it has not, that is an error and nothing is removed.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := f.load(c)
			if err != nil {
				return err
			}
			return RemoveAll(c.Context(), cfg, slog.New(slog.NewTextHandler(stderr, nil)))
		},
	}
	f.flags(c)
	return c
}

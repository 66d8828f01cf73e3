package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cloister/cloister/broker/client"
)

func tenantCmd(a *app) *cobra.Command {
	return group("tenant", "Give teams a part of the broker of their own",
		tenantCreateCmd(a), tenantListCmd(a), tenantQuotaCmd(a), tenantTokenCmd(a), tenantRemoveCmd(a))
}

// tokenFlags say where an admin token goes: into a file, which only its owner may read.
type tokenFlags struct {
	out  string
	show bool
}

func (f *tokenFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.out, "out", "", "write the admin token to FILE (default: NAME.admin-token)")
	c.Flags().BoolVar(&f.show, "show", false, "print the admin token instead of writing it to a file")
	c.MarkFlagsMutuallyExclusive("out", "show")
}

// receive asks for a token and puts it where the flags say. That the file can be written is seen before anything is asked:
// the broker tells a token once. A file that is there is replaced only when replace says so.
func (f *tokenFlags) receive(a *app, name string, replace bool, ask func() (string, error)) error {
	if f.show {
		token, err := ask()
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(map[string]string{"tenant": name, "admin_token": token})
		}
		fmt.Fprintln(a.stdout, token)
		return nil
	}
	file := f.out
	if file == "" {
		file = name + ".admin-token"
	}
	if _, err := os.Lstat(file); err == nil && !replace {
		return hint(fmt.Errorf("%s exists already", file), "name another file with --out FILE")
	}
	temp, err := os.CreateTemp(filepath.Dir(file), ".token-*") // mode 0600
	if err != nil {
		return fmt.Errorf("preparing the file of the admin token: %w", err)
	}
	defer os.Remove(temp.Name()) // gone when all went well
	token, err := ask()
	if err != nil {
		return errors.Join(err, temp.Close())
	}
	_, err = temp.WriteString(token + "\n")
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), file)
	}
	if err != nil {
		return hint(fmt.Errorf("writing the admin token: %w", err), "`cloister tenant token %s` makes another one", name)
	}
	if a.json {
		return a.printJSON(map[string]string{"tenant": name, "token_file": file})
	}
	fmt.Fprintf(a.stdout, "tenant %s: admin token in %s\n", name, file)
	return nil
}

// quotaFlags bound a tenant.
type quotaFlags struct{ client.Quota }

func (q *quotaFlags) add(c *cobra.Command) {
	c.Flags().IntVar(&q.Resources, "max-resources", 0, "most secrets")
	c.Flags().Int64Var(&q.Bytes, "max-bytes", 0, "most bytes of secrets, old versions included")
	c.Flags().Float64Var(&q.RequestsPerSecond, "requests-per-second", 0, "most requests of its guests and admins")
	c.Flags().IntVar(&q.ReferenceValues, "max-reference-values", 0, "most names of reference values")
	c.Flags().IntVar(&q.Policies, "max-policies", 0, "most policies")
	c.Flags().IntVar(&q.Sessions, "max-sessions", 0, "most handshakes of its guests at the same time")
}

func (q *quotaFlags) check() error {
	if q.Resources < 0 || q.Bytes < 0 || q.RequestsPerSecond < 0 || q.ReferenceValues < 0 || q.Policies < 0 || q.Sessions < 0 {
		return usageError{errors.New("a bound of a tenant is negative, want 0 or more")}
	}
	return nil
}

// over puts the bounds whose flags were given over those there are; false is when none was.
func (q *quotaFlags) over(c *cobra.Command, now client.Quota) (client.Quota, bool) {
	given := false
	for flag, take := range map[string]func(){
		"max-resources": func() { now.Resources = q.Resources }, "max-bytes": func() { now.Bytes = q.Bytes },
		"requests-per-second":  func() { now.RequestsPerSecond = q.RequestsPerSecond },
		"max-reference-values": func() { now.ReferenceValues = q.ReferenceValues },
		"max-policies":         func() { now.Policies = q.Policies }, "max-sessions": func() { now.Sessions = q.Sessions },
	} {
		if c.Flags().Changed(flag) {
			take()
			given = true
		}
	}
	return now, given
}

func tenantQuotaCmd(a *app) *cobra.Command {
	var q quotaFlags
	c := &cobra.Command{
		Use: "quota NAME", Short: "Change the bounds of a tenant", Args: exactly(1),
		Long: "The bounds that are given change, the others stay; 0 takes a bound away. What the tenant keeps already stays.",
		RunE: func(c *cobra.Command, args []string) error {
			if err := q.check(); err != nil {
				return err
			}
			if _, given := q.over(c, client.Quota{}); !given {
				return hintError{usageError{errors.New("no bound was given")}, "`cloister tenant list` shows those there are; `--help` names the flags"}
			}
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			list, err := broker.Tenants(c.Context())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(list, func(t client.Tenant) bool { return t.Name == args[0] })
			if i < 0 {
				return hint(fmt.Errorf("there is no tenant %.64q", args[0]), "`cloister tenant list` shows those there are")
			}
			quota, _ := q.over(c, list[i].Quota)
			if err := broker.SetTenantQuota(c.Context(), args[0], quota); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"tenant": args[0], "quota": quota})
			}
			fmt.Fprintf(a.stdout, "tenant %s: bounds changed\n", args[0])
			return nil
		},
	}
	q.add(c)
	a.broker.add(c)
	return c
}

func tenantCreateCmd(a *app) *cobra.Command {
	var q quotaFlags
	var f tokenFlags
	c := &cobra.Command{
		Use: "create NAME", Short: "Make a tenant, and a token for its admin", Args: exactly(1),
		Long: "A tenant has its own secrets, resource policies, reference values and admins, below https://HOST:PORT/ns/NAME. Its\n" +
			"admin uses that URL as --kbs, and the token as --admin-token. A bound of 0 is none; for sessions it is that of the broker's configuration.",
		RunE: func(c *cobra.Command, args []string) error {
			if err := q.check(); err != nil {
				return err
			}
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			return f.receive(a, args[0], false, func() (string, error) { return broker.CreateTenant(c.Context(), args[0], q.Quota) })
		},
	}
	q.add(c)
	f.add(c)
	a.broker.add(c)
	return c
}

func tenantTokenCmd(a *app) *cobra.Command {
	var f tokenFlags
	c := &cobra.Command{
		Use: "token NAME", Short: "Make a new admin token of a tenant; the one it has ends", Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			return f.receive(a, args[0], true, func() (string, error) { return broker.NewTenantToken(c.Context(), args[0]) })
		},
	}
	f.add(c)
	a.broker.add(c)
	return c
}

func tenantListCmd(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "List the tenants of the broker, with what they use of their bounds", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			list, err := broker.Tenants(c.Context())
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(list)
			}
			of := func(used, most int64) string {
				if most == 0 {
					return strconv.FormatInt(used, 10)
				}
				return fmt.Sprintf("%d of %d", used, most)
			}
			var rows [][]string
			for _, t := range list {
				rate := ""
				if r := t.Quota.RequestsPerSecond; r > 0 {
					rate = strconv.FormatFloat(r, 'g', -1, 64)
				}
				rows = append(rows, []string{
					t.Name, t.Created.Local().Format("2006-01-02"), of(int64(t.Usage.Resources), int64(t.Quota.Resources)), of(t.Usage.Bytes, t.Quota.Bytes),
					of(int64(t.Usage.ReferenceValues), int64(t.Quota.ReferenceValues)), of(int64(t.Usage.Policies), int64(t.Quota.Policies)),
					of(int64(t.Usage.Sessions), int64(t.Quota.Sessions)), rate,
				})
			}
			a.table("TENANT|CREATED|SECRETS|BYTES|REFERENCE VALUES|POLICIES|SESSIONS|REQUESTS/S", rows)
			return nil
		},
	}
	a.broker.add(c)
	return c
}

func tenantRemoveCmd(a *app) *cobra.Command {
	var confirm string
	c := &cobra.Command{
		Use: "rm NAME --confirm NAME", Short: "Remove a tenant with all its secrets, policies and reference values", Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if confirm != args[0] {
				return hintError{usageError{fmt.Errorf("removing tenant %s removes all it has, for good", args[0])},
					fmt.Sprintf("if that is meant: --confirm %s", args[0])}
			}
			broker, err := a.broker.client()
			if err != nil {
				return err
			}
			if err := broker.DeleteTenant(c.Context(), args[0]); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(map[string]any{"tenant": args[0], "removed": true})
			}
			fmt.Fprintf(a.stdout, "tenant %s: removed\n", args[0])
			return nil
		},
	}
	c.Flags().StringVar(&confirm, "confirm", "", "the name of the tenant once more")
	a.broker.add(c)
	return c
}

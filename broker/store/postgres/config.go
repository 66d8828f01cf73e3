package postgres

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Defaults.
const (
	DefaultPort             = 5432
	DefaultMaxConns         = 8
	DefaultConnectTimeout   = 5 * time.Second
	DefaultOperationTimeout = 10 * time.Second
)

const (
	maxPassword = 4 << 10
	// scanTimeout is how long Each may take, and the longest any statement runs on the server.
	scanTimeout = time.Minute
	// idleInTransaction is when the server ends a transaction of a broker that hangs or is gone.
	idleInTransaction = 15 * time.Second
)

// Config says where the database is. Either URL or the single fields name it; nothing is taken from PG… environment
// variables or from ~/.pgpass.
type Config struct {
	// URL is postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=FILE. The password is better kept
	// in PasswordFile. Several hosts, separated by commas, are tried in turn for the one that takes writes.
	URL string

	// Host is a name, an address, or the directory of a Unix socket.
	Host     string
	Port     int
	Database string
	User     string
	// PasswordFile is read at each new connection, so that a password can be changed while the broker runs.
	PasswordFile string

	TLS TLS

	MaxConns int
	// ConnectTimeout bounds making one connection, OperationTimeout everything one call does but Each.
	ConnectTimeout   time.Duration
	OperationTimeout time.Duration
}

// TLS is how the connection is protected. The server's certificate and name are always checked; a Unix socket has no TLS.
type TLS struct {
	// CAFile holds the authorities of the server's certificate; empty means those of the system.
	CAFile string
	// CertFile and KeyFile are the certificate of this broker, if the server wants one. They are read at each connection.
	CertFile, KeyFile string
	// InsecurePlaintext sends everything, the password's proof too, unprotected and trusts whoever answers.
	InsecurePlaintext bool
}

// address is a Config with its URL taken apart.
type address struct {
	hosts, ports             []string
	database, user, password string
	tls                      TLS
}

// Validate reports every fault of a Config at once.
func (c Config) Validate() error {
	_, err := c.address()
	return err
}

func (c Config) address() (address, error) {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	a := address{database: c.Database, user: c.User, tls: c.TLS}
	if c.URL != "" {
		if c.Host != "" || c.Port != 0 || c.Database != "" || c.User != "" {
			fault("url and host, port, database, user exclude each other")
		}
		var err error
		if a, err = fromURL(c.URL, c.TLS); err != nil {
			errs = append(errs, err)
		}
	} else {
		a.hosts, a.ports = []string{c.Host}, []string{strconv.Itoa(c.Port)}
		if c.Port == 0 {
			a.ports[0] = strconv.Itoa(DefaultPort)
		}
	}
	for i, host := range a.hosts {
		if host == "" {
			fault("no host is given")
		}
		if p, err := strconv.Atoi(a.ports[i]); err != nil || p < 1 || p > 65535 {
			fault("port is %.16q, want 1 to 65535", a.ports[i])
		}
	}
	if a.database == "" {
		fault("no database is given")
	}
	if a.user == "" {
		fault("no user is given")
	}
	if a.password != "" && c.PasswordFile != "" {
		fault("the url has a password and password_file is given: want one")
	}
	if (a.tls.CertFile == "") != (a.tls.KeyFile == "") {
		fault("a client certificate needs both its file and that of its key")
	}
	if c.MaxConns < 0 || c.MaxConns > 1000 {
		fault("max_conns is %d, want 1 to 1000", c.MaxConns)
	}
	if c.ConnectTimeout < 0 || c.OperationTimeout < 0 || c.OperationTimeout > scanTimeout {
		fault("timeouts are %s and %s, want up to %s", c.ConnectTimeout, c.OperationTimeout, scanTimeout)
	}
	return a, errors.Join(errs...)
}

// fromURL reads a URL. Its errors never quote it: it may hold a password.
func fromURL(text string, t TLS) (address, error) {
	a := address{tls: t}
	rest, ok := strings.CutPrefix(text, "postgres://")
	if !ok {
		if rest, ok = strings.CutPrefix(text, "postgresql://"); !ok {
			return a, errors.New("url does not begin with postgres://")
		}
	}
	// Several hosts with ports are no URL to net/url: they are cut out.
	head, query, _ := strings.Cut(rest, "?")
	head, database, _ := strings.Cut(head, "/")
	userinfo, hosts, ok := cutLast(head, "@")
	if !ok {
		userinfo, hosts = "", head
	}
	user, password, _ := strings.Cut(userinfo, ":")
	for _, field := range []struct {
		name, in string
		out      *string
	}{{"user", user, &a.user}, {"password", password, &a.password}, {"database", database, &a.database}} {
		s, err := url.PathUnescape(field.in)
		if err != nil {
			return a, fmt.Errorf("the %s in the url is not percent-encoded", field.name)
		}
		*field.out = s
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return a, errors.New("the query of the url is not percent-encoded")
	}
	for _, h := range strings.Split(hosts, ",") {
		host, port := h, strconv.Itoa(DefaultPort)
		if h2, p2, err := net.SplitHostPort(h); err == nil {
			host, port = h2, p2
		}
		a.hosts, a.ports = append(a.hosts, strings.Trim(host, "[]")), append(a.ports, port)
	}
	var errs []error
	for name, v := range values {
		value := v[len(v)-1]
		switch name {
		case "host": // the usual way to name a socket's directory
			if hosts != "" && hosts != value {
				errs = append(errs, errors.New("the url has two hosts"))
			}
			a.hosts = []string{value}
		case "port":
			a.ports[0] = value
		case "sslmode":
			switch value {
			case "verify-full":
			case "disable":
				a.tls.InsecurePlaintext = true
			default:
				errs = append(errs, fmt.Errorf("sslmode is %.32q: it does not prove who the server is, want verify-full or disable", value))
			}
		case "sslrootcert":
			a.tls.CAFile = value
		case "sslcert":
			a.tls.CertFile = value
		case "sslkey":
			a.tls.KeyFile = value
		default:
			errs = append(errs, fmt.Errorf("the url has the parameter %.32q, known are host, port, sslmode, sslrootcert, sslcert, sslkey", name))
		}
	}
	return a, errors.Join(errs...)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// pool is the configuration of the pool.
func (c Config) pool() (*pgxpool.Config, error) {
	a, err := c.address()
	if err != nil {
		return nil, err
	}
	quote := func(s string) string {
		return "'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `'`, `\'`) + "'"
	}
	// The primary takes writes; with a standby among the hosts anything else would be luck.
	pc, err := pgxpool.ParseConfig("host=" + quote(strings.Join(a.hosts, ",")) + " port=" + quote(strings.Join(a.ports, ",")) +
		" dbname=" + quote(a.database) + " user=" + quote(a.user) +
		" password=- sslmode=disable target_session_attrs=read-write")
	if err != nil {
		return nil, fmt.Errorf("reading the address of the database: %w", err)
	}
	conn := pc.ConnConfig
	conn.Password = a.password
	conn.ConnectTimeout = cmp.Or(c.ConnectTimeout, DefaultConnectTimeout)
	conn.DefaultQueryExecMode = pgx.QueryExecModeCacheStatement // prepared once a connection
	conn.StatementCacheCapacity = 64
	conn.RuntimeParams = map[string]string{
		"application_name":                    "cloister-broker",
		"statement_timeout":                   strconv.FormatInt(scanTimeout.Milliseconds(), 10),
		"idle_in_transaction_session_timeout": strconv.FormatInt(idleInTransaction.Milliseconds(), 10),
	}
	if conn.TLSConfig, err = a.tls.config(conn.Host); err != nil {
		return nil, err
	}
	for _, f := range conn.Fallbacks {
		if f.TLSConfig, err = a.tls.config(f.Host); err != nil {
			return nil, err
		}
	}
	if c.PasswordFile != "" {
		pc.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
			password, err := readPassword(c.PasswordFile)
			cc.Password = password
			return err
		}
	}
	pc.MaxConns = int32(cmp.Or(c.MaxConns, DefaultMaxConns))
	pc.MaxConnLifetime = time.Hour
	pc.MaxConnLifetimeJitter = 5 * time.Minute
	pc.HealthCheckPeriod = 15 * time.Second
	return pc, nil
}

func (t TLS) config(host string) (*tls.Config, error) {
	if t.InsecurePlaintext || filepath.IsAbs(host) {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}
	if t.CAFile != "" {
		text, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the authorities of the database: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no PEM certificate", t.CAFile)
		}
	}
	if t.CertFile != "" {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
			return &cert, err
		}
	}
	return c, nil
}

// readPassword reads a password file of one line. One that others may read is refused.
func readPassword(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("reading the password of the database: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return "", fmt.Errorf("password file %s has mode %04o, want 0600: others could read it", path, perm)
	}
	if info.Size() > maxPassword {
		return "", fmt.Errorf("password file %s has %d bytes, at most %d are taken", path, info.Size(), maxPassword)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the password of the database: %w", err)
	}
	raw = bytes.TrimRight(raw, "\r\n")
	if len(raw) == 0 || bytes.ContainsAny(raw, "\r\n\x00") {
		return "", fmt.Errorf("password file %s does not hold one line", path)
	}
	return string(raw), nil
}

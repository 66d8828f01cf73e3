package config

import (
	"time"

	"github.com/cloister/cloister/broker/store/postgres"
)

// The back ends of Database.
const (
	DatabaseEmbedded   = "embedded"
	DatabasePostgreSQL = "postgresql"
)

// Database is where the broker keeps its state: in a file of its own, or in a PostgreSQL database that several brokers share.
type Database struct {
	Backend           string   `toml:"backend"`
	Host              string   `toml:"host"`
	Port              int      `toml:"port"`
	Name              string   `toml:"name"`
	User              string   `toml:"user"`
	PasswordFile      string   `toml:"password_file"`
	CAFile            string   `toml:"ca_file"`
	CertificateFile   string   `toml:"certificate_file"`
	KeyFile           string   `toml:"key_file"`
	InsecurePlaintext bool     `toml:"insecure_plaintext"`
	MaxConnections    int      `toml:"max_connections"`
	ConnectTimeout    Duration `toml:"connect_timeout"`
	OperationTimeout  Duration `toml:"operation_timeout"`
}

func defaultDatabase() Database {
	return Database{
		Backend: DatabaseEmbedded, Port: postgres.DefaultPort, MaxConnections: postgres.DefaultMaxConns,
		ConnectTimeout: Duration(postgres.DefaultConnectTimeout), OperationTimeout: Duration(postgres.DefaultOperationTimeout),
	}
}

// PostgreSQL is the configuration of that back end.
func (d Database) PostgreSQL() postgres.Config {
	return postgres.Config{
		Host: d.Host, Port: d.Port, Database: d.Name, User: d.User, PasswordFile: d.PasswordFile,
		TLS:      postgres.TLS{CAFile: d.CAFile, CertFile: d.CertificateFile, KeyFile: d.KeyFile, InsecurePlaintext: d.InsecurePlaintext},
		MaxConns: d.MaxConnections, ConnectTimeout: time.Duration(d.ConnectTimeout), OperationTimeout: time.Duration(d.OperationTimeout),
	}
}

func (d Database) validate(fault func(format string, args ...any)) {
	switch d.Backend {
	case DatabaseEmbedded:
		if d.Host != "" || d.Name != "" || d.User != "" {
			fault("database.host, name and user have no effect with database.backend = %q, want %q", d.Backend, DatabasePostgreSQL)
		}
	case DatabasePostgreSQL:
		if err := d.PostgreSQL().Validate(); err != nil {
			fault("database: %w", err)
		}
	default:
		fault("database.backend is %.32q, want %q or %q", d.Backend, DatabaseEmbedded, DatabasePostgreSQL)
	}
	for _, t := range []struct {
		key string
		v   Duration
	}{{"database.connect_timeout", d.ConnectTimeout}, {"database.operation_timeout", d.OperationTimeout}} {
		if v := time.Duration(t.v); v < time.Second || v > 5*time.Minute {
			fault("%s is %s, want 1s to 5m", t.key, v)
		}
	}
}

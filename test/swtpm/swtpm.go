// Package swtpm runs a software TPM (the swtpm program) for tests: a whole
// TPM 2.0 with an endorsement key certificate from an authority made for the
// test, reached over a socket pair. Tests that need only quotes made to order
// use faketpm.
package swtpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"golang.org/x/sys/unix"

	"github.com/cloister/cloister/internal/needs"
)

// commandTimeout bounds one TPM command; making a key on a busy machine is the slowest.
const commandTimeout = time.Minute

// TPM is a running software TPM.
type TPM struct {
	// Root is the certificate of the authority that signed the endorsement key.
	Root *x509.Certificate

	mu   sync.Mutex
	conn net.Conn
}

// Start makes a new TPM with SHA-256 as its only bank and runs it until the
// test ends. The test is skipped when swtpm is not installed.
func Start(t testing.TB) *TPM {
	t.Helper()
	needs.Programs(t, "swtpm", "swtpm_setup", "swtpm_localca")
	// Not t.TempDir: its paths can be longer than the tools allow.
	dir, err := os.MkdirTemp("/tmp", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	root := manufacture(t, dir)

	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "tpm"), os.NewFile(uintptr(fds[1]), "tpm-client")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+filepath.Join(dir, "state"),
		"--fd", "3", "--flags", "not-need-init,startup-clear", "--log", "file="+filepath.Join(dir, "log"))
	cmd.ExtraFiles = []*os.File{theirs}
	if err := cmd.Start(); err != nil {
		_ = conn.Close()
		t.Fatalf("starting swtpm: %v", err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &TPM{Root: root, conn: conn}
}

// Transport is the connection to the TPM. Closing it leaves the TPM running.
func (s *TPM) Transport() transport.TPMCloser { return link{s} }

type link struct{ tpm *TPM }

func (link) Close() error { return nil }

func (l link) Send(command []byte) ([]byte, error) {
	l.tpm.mu.Lock()
	defer l.tpm.mu.Unlock()
	if err := l.tpm.conn.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return nil, err
	}
	return transport.FromReadWriter(l.tpm.conn).Send(command)
}

// manufacture makes an authority and a TPM whose endorsement key it certified.
func manufacture(t testing.TB, dir string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: "test TPM authority"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{
		"key.pem":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
		"cert.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"ca.conf": fmt.Sprintf("statedir = %s\nsigningkey = %s\nissuercert = %s\ncertserial = %s\n",
			dir, at("key.pem"), at("cert.pem"), at("serial")),
		"ca.options": "--platform-manufacturer test\n--platform-version 1\n--platform-model test\n",
		"setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n",
			localca, at("ca.conf"), at("ca.options")),
	} {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(at("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"--tpm2", "--tpmstate", "dir://" + at("state"), "--create-ek-cert", "--pcr-banks", "sha256", "--config", at("setup.conf")}
	if os.Geteuid() == 0 {
		args = append(args, "--runas", "root") // the default account cannot enter the directory
	}
	if out, err := exec.Command("swtpm_setup", args...).CombinedOutput(); err != nil {
		t.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
	return root
}

// Package postgres starts PostgreSQL servers for tests, each with a cluster of its own in a temporary folder.
//
// The programs are those of the distribution; where there are none, tests that need them are skipped and say so. A server
// listens on a Unix socket and on a random port of 127.0.0.1, wants a password, and offers TLS with a certificate that
// its own authority (CAFile) has signed. Nothing outlives the test.
package postgres

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cloister/cloister/internal/needs"
	"github.com/cloister/cloister/test/ended"
)

// What to log in with.
const (
	User     = "cloister"
	Password = "correct-horse-%27-battery"
	Database = "postgres"
)

// Server is a running cluster.
type Server struct {
	// Dir holds the socket, Port is that of 127.0.0.1.
	Dir  string
	Port int
	// CAFile is the authority of the server's certificate, whose name is 127.0.0.1; PasswordFile holds Password.
	CAFile, PasswordFile string

	t    testing.TB
	bin  string
	cred *syscall.Credential
	cmd  *exec.Cmd
	done chan error
	log  string
}

// Start makes a cluster and starts it.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := programs()
	if bin == "" {
		needs.Missing(t, "a PostgreSQL server (package postgresql)")
	}
	s := &Server{t: t, bin: bin}
	s.asPostgres()
	var err error
	// A short name: the path of a socket may have 107 bytes.
	if s.Dir, err = os.MkdirTemp("/tmp", "pg"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(s.Dir); err != nil {
			t.Error(err)
		}
	})
	s.PasswordFile, s.log = filepath.Join(s.Dir, "password"), filepath.Join(s.Dir, "log")
	s.write("password", []byte(Password+"\n"))
	s.certify()
	s.own(s.Dir)
	out, err := s.command("initdb", "-D", s.data(), "-U", User, "--pwfile="+s.PasswordFile, "--auth=scram-sha-256",
		"--encoding=UTF8", "--locale=C", "--no-sync").CombinedOutput()
	if err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	s.Port = freePort(t)
	s.Run()
	t.Cleanup(s.Kill)
	return s
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

// programs is the folder of the server's programs: Debian keeps them out of the path.
func programs() string {
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is right
	slices.SortFunc(dirs, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	for _, dir := range dirs {
		_, err1 := os.Stat(filepath.Join(dir, "initdb"))
		_, err2 := os.Stat(filepath.Join(dir, "postgres"))
		if err1 == nil && err2 == nil {
			return dir
		}
	}
	return ""
}

func version(dir string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(dir))) // zero sorts last
	return n
}

// asPostgres looks up who runs the server: it refuses to run as root.
func (s *Server) asPostgres() {
	if os.Getuid() != 0 {
		return
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		needs.Missing(s.t, "a user for PostgreSQL, which does not run as root: %v", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err1 != nil || err2 != nil {
		s.t.Fatalf("user postgres has ids %s and %s", u.Uid, u.Gid)
	}
	s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func (s *Server) own(path string) {
	if s.cred == nil {
		return
	}
	if err := os.Chown(path, int(s.cred.Uid), int(s.cred.Gid)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *Server) write(name string, data []byte) {
	path := filepath.Join(s.Dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.own(path)
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir = s.Dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Run starts the server again after Kill and waits until it answers.
func (s *Server) Run() {
	s.t.Helper()
	s.cmd = s.command("postgres", "-D", s.data(), "-k", s.Dir, "-p", strconv.Itoa(s.Port), "-c", "listen_addresses=127.0.0.1",
		"-c", "ssl=on", "-c", "ssl_cert_file="+filepath.Join(s.Dir, "server.pem"), "-c", "ssl_key_file="+filepath.Join(s.Dir, "server.key"),
		"-c", "max_connections=100", "-c", "fsync=off", "-c", "full_page_writes=off") // a killed process loses no page
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	s.cmd.Stdout, s.cmd.Stderr = log, log
	started, done, cmd := make(chan error), make(chan error, 1), s.cmd
	s.done = done
	go func() {
		// The kernel kills the server when the thread that started it ends: this one stays.
		runtime.LockOSThread()
		started <- cmd.Start()
		done <- cmd.Wait()
		close(done)
	}()
	if err := <-started; err != nil {
		s.t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.ready()
}

func (s *Server) ready() {
	s.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		// The eighth line of the server's lock file tells when it takes connections.
		raw, err := os.ReadFile(filepath.Join(s.data(), "postmaster.pid"))
		lines := bytes.Split(raw, []byte("\n"))
		if err == nil && len(lines) > 7 && string(lines[0]) == strconv.Itoa(s.cmd.Process.Pid) &&
			strings.TrimSpace(string(lines[7])) == "ready" {
			return
		}
		select {
		case err := <-s.done: // closed from here on
			text, _ := os.ReadFile(s.log) // what there is of it
			s.t.Fatalf("the server ended: %v\n%s", err, text)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(s.log) // what there is of it
			s.t.Fatalf("the server does not come up\n%s", text)
		}
	}
}

// Kill ends the server and all of its processes at once, as a crash does. A dead server stays dead.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	pid := s.cmd.Process.Pid
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) // none is right, too
	kill(pid)
	for _, child := range strings.Fields(string(raw)) {
		if n, err := strconv.Atoi(child); err == nil {
			kill(n)
			defer func() { _ = ended.Wait(n, time.Minute) }() // or the next server finds their shared memory in use
		}
	}
	<-s.done
	s.cmd = nil
	// The processes are gone when nobody holds the port any more. A connection that one of them has taken ends with it.
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		conn, err := net.Dial("tcp", s.Address())
		if err != nil {
			return
		}
		_ = conn.SetReadDeadline(end)
		_, _ = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	s.t.Error("the server is killed and still answers")
}

func kill(pid int) {
	// One that has ended by itself is as good as killed.
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// Address is where the server listens besides the socket.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// freePort is one that the server can have again after it was killed: the kernel gives ports from 32768 on to whoever wants any, and so to other
// tests meanwhile.
func freePort(t testing.TB) int {
	var err error
	for range 100 {
		port := 20000 + mathrand.IntN(12000)
		var ln net.Listener
		if ln, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			if err := ln.Close(); err != nil {
				t.Fatal(err)
			}
			return port
		}
	}
	t.Fatal(err)
	return 0
}

// certify makes an authority and the server's certificate for 127.0.0.1.
func (s *Server) certify() {
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test database authority"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test database"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	rootKey, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leafKey, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err1 != nil || err2 != nil {
		s.t.Fatal(err1, err2)
	}
	rootDER, err1 := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	leafDER, err2 := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
	keyDER, err3 := x509.MarshalPKCS8PrivateKey(leafKey)
	if err1 != nil || err2 != nil || err3 != nil {
		s.t.Fatal(err1, err2, err3)
	}
	s.CAFile = filepath.Join(s.Dir, "ca.pem")
	s.write("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}))
	s.write("server.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER}))
	s.write("server.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}))
}

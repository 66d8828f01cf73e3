package resource

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister/cloister/broker/seal"
	"github.com/cloister/cloister/broker/store"
)

const crashEnv = "CLOISTER_TEST_RESOURCE_WRITER"

// TestMain is the writer that TestKill kills when it is started as such.
func TestMain(m *testing.M) {
	if dir := os.Getenv(crashEnv); dir != "" {
		fmt.Fprintln(os.Stderr, write(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func crashStore(dir string) (*Store, *store.Bolt, error) {
	db, err := store.Open(filepath.Join(dir, "db"))
	if err != nil {
		return nil, nil, err
	}
	key, err := seal.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		return nil, nil, err
	}
	s, err := OpenStore(db, key, Config{OldVersions: 2, RepositoryBytes: 1 << 30}, time.Now)
	return s, db, err
}

// write stores version after version of five resources for ever and says so after each.
func write(dir string) error {
	s, _, err := crashStore(dir)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		p, err := ParsePath([]string{"a", "k", fmt.Sprint(i % 5)})
		if err != nil {
			return err
		}
		v, err := s.PutVersion(context.Background(), p, content(p.String(), uint64(i/5)))
		if err != nil {
			return err
		}
		fmt.Println(p, v.Number)
	}
}

func content(name string, n uint64) []byte {
	return []byte(strings.Repeat(fmt.Sprint(name, " ", n, ";"), 500))
}

func TestKillLosesNoAcknowledgedWrite(t *testing.T) {
	for range 5 {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashEnv+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		last := map[string]uint64{}
		lines := bufio.NewScanner(out)
		for left := 20 + rand.IntN(60); lines.Scan(); left-- {
			var name string
			var number uint64
			if _, err := fmt.Sscan(lines.Text(), &name, &number); err != nil {
				break // the last line may be cut
			}
			last[name] = number
			if left == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != -1 {
			t.Fatalf("the writer was not killed: %v", err)
		}
		s, db, err := crashStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(last) != 5 {
			t.Errorf("%d resources were written, want 5", len(last))
		}
		for name, number := range last {
			versions, err := s.Versions(t.Context(), path(t, name))
			// A write that was not acknowledged any more may be there.
			if err != nil || versions[0].Number != number && versions[0].Number != number+1 {
				t.Fatalf("%s: version %d was acknowledged, the store has %+v (%v)", name, number, versions, err)
			}
			for _, v := range versions {
				got, _, err := s.GetVersion(t.Context(), path(t, name), v.Number)
				if err != nil || !bytes.Equal(got, content(name, v.Number-1)) {
					t.Fatalf("%s version %d is not what was written: %d bytes, %v", name, v.Number, len(got), err)
				}
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/cloister/cloister/wire/as"
	"github.com/cloister/cloister/wire/rvps"
)

// TestOneServiceOnly: a process that is one of the services serves that one, and is no key broker.
func TestOneServiceOnly(t *testing.T) {
	for _, service := range []string{"as", "rvps"} {
		t.Run(service, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "broker.toml")
			text := fmt.Sprintf("data_dir = \"data\"\n[server]\nlisten = \"\"\n[attestation_api]\ngrpc_listen = \"127.0.0.1:0\"\nservices = [%q]\n", service)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			stale := filepath.Join(dir, "data", urlFile)
			if err := os.Mkdir(filepath.Dir(stale), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(stale, []byte("https://127.0.0.1:1\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			out, in := io.Pipe()
			done := make(chan int, 1)
			var stderr bytes.Buffer
			go func() {
				code := Main(ctx, []string{"serve", "--config", file}, "test", in, &stderr)
				in.Close()
				done <- code
			}()
			var ready Ready
			if err := json.NewDecoder(out).Decode(&ready); err != nil {
				t.Fatalf("ready line: %v, %d: %s", err, <-done, stderr.String())
			}
			if ready.URL != "" || ready.AttestationREST != "" || ready.AttestationGRPC == "" {
				t.Errorf("ready: %+v", ready)
			}
			if _, err := os.Stat(stale); err == nil {
				t.Error("the URL of an earlier start is still there")
			}
			creds, err := credentials.NewClientTLSFromFile(ready.TLSCertificate, "")
			if err != nil {
				t.Fatal(err)
			}
			conn, err := grpc.NewClient(strings.TrimPrefix(ready.AttestationGRPC, "https://"), grpc.WithTransportCredentials(creds))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, asErr := as.NewAttestationServiceClient(conn).GetAttestationChallenge(ctx, &as.ChallengeRequest{Inner: map[string]string{"tee": "snp", "tee_params": ""}})
			_, rvpsErr := rvps.NewReferenceValueProviderServiceClient(conn).QueryReferenceValue(ctx, &rvps.ReferenceValueQueryRequest{ReferenceValueId: "x"})
			served, not := asErr, rvpsErr
			if service == "rvps" {
				served, not = rvpsErr, asErr
			}
			if served != nil || status.Code(not) != codes.Unimplemented {
				t.Errorf("its own service: %v; the other: %v, want it not to be there", served, not)
			}
			stop()
			select {
			case code := <-done:
				if code != 0 {
					t.Errorf("exit code %d: %s", code, stderr.String())
				}
			case <-time.After(30 * time.Second):
				t.Fatal("the broker does not stop")
			}
		})
	}
}

package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
)

// The host sees itself as 127.0.0.1; the guest, behind user-mode networking, sees the host as 10.0.2.2.
const (
	brokerListen = "127.0.0.1:18443"
	brokerGuest  = "https://10.0.2.2:18443"
	registryHost = "127.0.0.1:15000"
	registryVM   = "10.0.2.2:15000"
	image        = "demo/hello"
)

// podYAML is the pod of the demo. The second container is the one an exec is tried on.
const podYAML = `apiVersion: v1
kind: Pod
metadata:
  name: hello
spec:
  restartPolicy: Never
  initContainers:
    - name: prepare
      image: 127.0.0.1:15000/demo/hello:encrypted
      command: ["/bin/sh", "-c", "echo prepared > /work/state"]
      volumeMounts:
        - {name: work, mountPath: /work}
  containers:
    - name: hello
      image: 127.0.0.1:15000/demo/hello:encrypted
      env:
        - {name: GREETING, value: "hello from an attested pod"}
      command: ["/bin/sh", "-c", "echo $GREETING; cat /etc/message; cat /work/state; exit 7"]
      resources: {limits: {memory: 128Mi, cpu: "1"}}
      volumeMounts:
        - {name: work, mountPath: /work}
  volumes:
    - name: work
      emptyDir: {}
`

// sleeperYAML stays up, so that an exec can be tried.
const sleeperYAML = `apiVersion: v1
kind: Pod
metadata:
  name: sleeper
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: 127.0.0.1:15000/demo/hello:encrypted
      command: ["/bin/sh", "-c", "echo up; read line; echo $line"]
      stdin: true
`

var steps = []step{
	{"what this host can do", func(s *session) error {
		_, err := s.sh("cloister", "doctor")
		return err
	}},
	{"the guest image: kernel, initrd, manifest", func(s *session) error {
		_, err := s.sh("cloister", "guest", "build")
		return err
	}},
	{"a key broker on its embedded store", func(s *session) error {
		if _, err := s.sh("cloister", "doctor", "--tpm-ca", s.path("tpm-ca.pem")); err != nil {
			return err
		}
		_, err := s.daemon("url", "cloister-broker", "serve", "--data", "broker", "--listen", brokerListen, "--tpm-ek-roots", "tpm-ca.pem")
		return err
	}},
	{"a registry, and an image made from files on this machine", func(s *session) error {
		if _, err := s.daemon("listening", "cloister", "image", "registry", "--listen", registryHost); err != nil {
			return err
		}
		if err := os.WriteFile(s.path("message"), []byte("this file came out of an encrypted layer\n"), 0o644); err != nil {
			return err
		}
		_, err := s.sh("cloister", "image", "build", "--file", "/bin/sh", "--file", "/bin/cat", "--file", "message:/etc/message",
			"--insecure-registry", registryHost, registryHost+"/"+image+":plain")
		return err
	}},
	{"encrypted and signed", func(s *session) error {
		for _, args := range [][]string{
			{"key", "new", "image.key"},
			{"key", "new", "--type", "signing", "signing.key"},
			{"image", "encrypt", "--key", "image.key", "--key-id", "kbs:///default/image-kek/demo", "--insecure-registry", registryHost,
				registryHost + "/" + image + ":plain", registryHost + "/" + image + ":encrypted"},
			{"image", "sign", "--key", "signing.key", "--identity", registryVM + "/" + image, "--insecure-registry", registryHost, registryHost + "/" + image + ":encrypted"},
			{"image", "inspect", "--insecure-registry", registryHost, registryHost + "/" + image + ":encrypted"},
		} {
			if _, err := s.sh("cloister", args...); err != nil {
				return err
			}
		}
		return nil
	}},
	{"the keys go to the broker", func(s *session) error {
		policy := `{"default":[{"type":"reject"}],"transports":{"docker":{"` + registryVM + `/demo":[{"type":"sigstoreSigned","keyPath":"kbs:///default/cosign-key/demo","signedIdentity":{"type":"matchRepository"}}]}}}`
		if err := os.WriteFile(s.path("image-policy.json"), []byte(policy), 0o644); err != nil {
			return err
		}
		for uri, file := range map[string]string{
			"kbs:///default/image-kek/demo":       "image.key",
			"kbs:///default/cosign-key/demo":      "signing.key.pub",
			"kbs:///default/security-policy/demo": "image-policy.json",
		} {
			if _, err := s.sh("cloister", "secret", "put", "--broker-dir", "broker", uri, file); err != nil {
				return err
			}
		}
		return nil
	}},
	{"policy and initdata, made from the pod", func(s *session) error {
		for pod, text := range map[string]string{"pod": podYAML, "sleeper": sleeperYAML} {
			if err := os.WriteFile(s.path(pod+".yaml"), []byte(text), 0o644); err != nil {
				return err
			}
		}
		if _, err := s.sh("cloister", "policy", "generate", "--for", "run", "--insecure-registry", registryHost, "--guest-registry", registryHost+"="+registryVM, "-o", "policy.rego", "pod.yaml"); err != nil {
			return err
		}
		for _, pod := range []string{"pod", "sleeper"} {
			if _, err := s.sh("cloister", append([]string{"initdata", "new", "-o", pod + ".toml", "--guest-kbs", brokerGuest, "--broker-dir", "broker",
				"--image-policy", "kbs:///default/security-policy/demo"}, append(registryFlags(), pod+".yaml")...)...); err != nil {
				return err
			}
		}
		_, err := s.sh("cloister", "initdata", "inspect", "pod.toml")
		return err
	}},
	{"expected measurements, computed from the artefacts", func(s *session) error {
		for _, pod := range []string{"pod", "sleeper"} {
			if _, err := s.sh("cloister", append([]string{"refvalue", "compute", "--initdata", pod + ".toml", "-o", pod + ".refvalues.json"}, append(registryFlags(), pod+".yaml")...)...); err != nil {
				return err
			}
			if _, err := s.sh("cloister", "refvalue", "add", "--broker-dir", "broker", pod+".refvalues.json"); err != nil {
				return err
			}
		}
		_, err := s.sh("cloister", "refvalue", "list", "--broker-dir", "broker")
		return err
	}},
	{"the pod: boot, attest, pull, decrypt, run", func(s *session) error {
		out, code, err := s.try("cloister", runArgs("pod", "pod.toml")...)
		if err != nil {
			return err
		}
		for _, want := range []string{"hello from an attested pod", "this file came out of an encrypted layer", "prepared"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("the pod did not print %q", want)
			}
		}
		if code != 7 {
			return fmt.Errorf("exit code %d, the container ended with 7", code)
		}
		fmt.Fprintln(s.out, "  => exit code 7, the container's own")
		return nil
	}},
	{"the attestation result, for a person", func(s *session) error {
		out, err := s.sh("cloister", "broker", "audit", "--broker-dir", "broker", "--tail", "6")
		if err != nil {
			return err
		}
		id := requestID.FindStringSubmatch(out)
		if id == nil {
			return errors.New("the audit log names no request")
		}
		_, err = s.sh("cloister", "explain", "--broker-dir", "broker", "latest")
		return err
	}},
	{"attack 1: a changed kernel command line", func(s *session) error {
		return s.refused([]string{"tpm_pcr09"}, "cloister", append(runArgs("pod", "pod.toml"), "--kernel-append", "init_on_alloc=0")...)
	}},
	{"attack 2: a changed policy in the initdata", func(s *session) error {
		text, err := os.ReadFile(s.path("pod.toml"))
		if err != nil {
			return err
		}
		changed := strings.Replace(string(text), "default ExecProcessRequest := false", "default ExecProcessRequest := true", 1)
		if changed == string(text) {
			return errors.New("the initdata has no rule to change")
		}
		if err := os.WriteFile(s.path("changed.toml"), []byte(changed), 0o644); err != nil {
			return err
		}
		return s.refused([]string{"tpm_init_data"}, "cloister", runArgs("pod", "changed.toml")...)
	}},
	{"attack 3: an exec that the policy forbids", func(s *session) error {
		if _, err := s.sh("cloister", append(runArgs("sleeper", "sleeper.toml"), "--detach")...); err != nil {
			return err
		}
		refused := s.refused([]string{"ExecProcessRequest is blocked by policy"}, "cloister", "exec", "sleeper", "--", "/bin/cat", "/etc/message")
		_, err := s.sh("cloister", "stop", "sleeper")
		return errors.Join(refused, err)
	}},
}

var requestID = regexp.MustCompile(`[0-9a-f]{8,}`)

func registryFlags() []string {
	return []string{"--insecure-registry", registryHost, "--guest-registry", registryHost + "=" + registryVM}
}

// runArgs is `cloister run` for one pod with one initdata.
func runArgs(pod, initdata string) []string {
	return append([]string{"run", pod + ".yaml", "--initdata", initdata}, registryFlags()...)
}

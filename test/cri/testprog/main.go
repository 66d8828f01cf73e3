// Command testprog is what runs in the containers of tests. Its first argument says what it does.
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "serve":
		err = serve()
	case "web":
		err = web(args[:min(1, len(args))]) // more is for who looks at command lines
	case "euid":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
	case "dial":
		err = dial(args)
	case "alloc":
		err = alloc(args)
	case "spam":
		err = spam(args)
	case "zombies":
		err = zombies(args)
	case "exit":
		os.Exit(number(args))
	case "stubborn":
		stubborn()
	case "facts":
		err = facts()
	default:
		usage()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testprog:", err)
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: testprog serve | web PORT | euid | dial NETWORK ADDRESS TEXT | alloc MIB | spam MIB | zombies N | exit CODE | stubborn | facts")
	os.Exit(2)
}

func number(args []string) int {
	if len(args) != 1 {
		usage()
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		usage()
	}
	return n
}

// serve answers what it gets: TCP on port 7000, UDP on 7001; and by HTTP on 8080 who asked whom. It ends by SIGTERM.
func serve() error {
	tcp, err := net.Listen("tcp", ":7000")
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	udp, err := net.ListenPacket("udp", ":7001")
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(buf[:n], from)
		}
	}()
	web, err := net.Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	go func() {
		_ = http.Serve(web, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			name, _ := os.Hostname()
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			fmt.Fprintf(w, "%s answers %s\n", name, host)
		}))
	}()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	fmt.Println("serving")
	<-signals
	fmt.Println("ending")
	return nil
}

// web serves an empty page for ever.
func web(args []string) error {
	return http.ListenAndServe(fmt.Sprint(":", number(args)), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
}

// dial sends a text and prints what comes back; network "http" gets a page instead.
func dial(args []string) error {
	if len(args) != 3 {
		usage()
	}
	if args[0] == "http" {
		client := &http.Client{Timeout: 10 * time.Second}
		r, err := client.Get("http://" + args[1] + "/" + args[2])
		if err != nil {
			return err
		}
		defer r.Body.Close()
		_, err = io.Copy(os.Stdout, r.Body)
		return err
	}
	c, err := net.DialTimeout(args[0], args[1], 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, args[2]); err != nil {
		return err
	}
	buf := make([]byte, len(args[2]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	fmt.Printf("%s\n", buf)
	return nil
}

// alloc takes memory page by page and keeps it until it is told to end.
func alloc(args []string) error {
	var kept [][]byte
	for range number(args) {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	fmt.Println("allocated", len(kept), "MiB")
	<-signals
	return nil
}

// spam writes lines of 100 bytes to stdout and at the end the digest of all of them to stderr.
func spam(args []string) error {
	h := sha256.New()
	out := bufio.NewWriterSize(os.Stdout, 1<<16)
	w := io.MultiWriter(out, h)
	for n := range number(args) << 20 / 100 {
		if _, err := fmt.Fprintf(w, "%099d\n", n); err != nil {
			return err
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%x\n", h.Sum(nil))
	return nil
}

// zombies starts children that end, never waits for them, and stays.
func zombies(args []string) error {
	for range number(args) {
		if err := exec.Command("/proc/self/exe", "exit", "0").Start(); err != nil {
			return err
		}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	fmt.Println("left", args[0])
	<-signals
	return nil
}

// stubborn does not end by SIGTERM.
func stubborn() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	fmt.Println("ready")
	for range signals {
		fmt.Println("got SIGTERM")
	}
}

// facts prints what the process is: identities, limits, capabilities, and its mounts.
func facts() error {
	groups, err := os.Getgroups()
	if err != nil {
		return err
	}
	cwd, err := os.Getwd()
	if err != nil {
		return err
	}
	fmt.Println("uid", os.Getuid(), "gid", os.Getgid(), "groups", strings.Trim(fmt.Sprint(groups), "[]"))
	fmt.Println("cwd", cwd)
	fmt.Println("pid", os.Getpid(), "ppid", os.Getppid())
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(status), "\n") {
		for _, key := range []string{"CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"} {
			if strings.HasPrefix(line, key+":") {
				fmt.Println(strings.ReplaceAll(line, ":\t", " "))
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(strings.TrimSpace(string(mounts)), "\n") {
		if f := strings.Fields(line); len(f) > 5 {
			fmt.Println("mount", f[4], f[5])
		}
	}
	return nil
}

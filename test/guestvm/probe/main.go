// Command probe is what the test of the guest runs in a container: each word is a small experiment.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	for _, arg := range os.Args[1:] {
		verb, value, _ := strings.Cut(arg, "=")
		switch verb {
		case "say":
			fmt.Println(value)
		case "complain":
			fmt.Fprintln(os.Stderr, value)
		case "env":
			fmt.Println(os.Getenv(value))
		case "who":
			host, _ := os.Hostname()
			fmt.Println(os.Getpid(), os.Getuid(), host)
		case "time":
			fmt.Println(time.Now().Unix())
		case "cat":
			b, err := os.ReadFile(value)
			fmt.Println(strings.TrimSpace(string(b)), err)
		case "write":
			fmt.Println(os.WriteFile(value, []byte("x"), 0o644))
		case "ls":
			entries, err := os.ReadDir(value)
			for _, e := range entries {
				fmt.Print(e.Name(), " ")
			}
			fmt.Println(err)
		case "open":
			f, err := os.OpenFile(value, os.O_RDWR, 0)
			fmt.Println(err)
			if err == nil {
				f.Close()
			}
		case "echo":
			_, _ = io.Copy(os.Stdout, os.Stdin)
		case "line":
			s := bufio.NewScanner(os.Stdin)
			s.Scan()
			fmt.Println("got", s.Text())
		case "follow": // says what is in a file for each line that it gets, until the end of them
			for s := bufio.NewScanner(os.Stdin); s.Scan(); {
				b, err := os.ReadFile(value)
				fmt.Println(strings.TrimSpace(string(b)), err)
			}
		case "eat":
			var hold [][]byte
			for {
				b := make([]byte, 1<<20)
				for i := range b {
					b[i] = 1
				}
				hold = append(hold, b)
				runtime.KeepAlive(hold)
			}
		case "fill":
			// Writes and reads back some MiB below a directory.
			name, mib, _ := strings.Cut(value, ":")
			var n int
			fmt.Sscan(mib, &n)
			data := make([]byte, n<<20)
			for i := range data {
				data[i] = byte(i * 7 >> 3)
			}
			err := os.WriteFile(name, data, 0o600)
			syscall.Sync()
			back, rerr := os.ReadFile(name)
			fmt.Println("filled", err, rerr, string(back) == string(data))
		case "direct":
			// Reads a file from the disk and not from memory.
			f, err := os.OpenFile(value, os.O_RDONLY|syscall.O_DIRECT, 0)
			total := 0
			if err == nil {
				var buf []byte // aligned
				buf, err = syscall.Mmap(-1, 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
				for n := 1; err == nil && n > 0; total += n {
					n, err = syscall.Read(int(f.Fd()), buf)
				}
			}
			fmt.Println("direct", total, err)
		case "serve":
			l, err := net.Listen("tcp", "127.0.0.1:"+value)
			fmt.Println("serving", err)
			c, err := l.Accept()
			if err == nil {
				_, _ = io.Copy(c, c)
				c.Close()
			}
		case "term":
			c := make(chan os.Signal, 1)
			signal.Notify(c, syscall.SIGTERM)
			fmt.Println("ready")
			<-c
			os.Exit(9)
		case "sleep":
			fmt.Println("sleeping")
			time.Sleep(time.Hour)
		case "exit":
			var n int
			fmt.Sscan(value, &n)
			os.Exit(n)
		}
	}
}

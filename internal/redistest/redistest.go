//go:build unix

package redistest

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Binaries are the servers that there are: Redis always, and Valkey where it is
// installed.
func Binaries(t testing.TB) []string {
	t.Helper()
	binaries := []string{"redis-server"}
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatal("the tests need redis-server: scripts/setup.sh installs it")
	}
	if _, err := exec.LookPath("valkey-server"); err == nil {
		binaries = append(binaries, "valkey-server")
	}
	return binaries
}

// Server is one server process.
type Server struct {
	Address string

	t      testing.TB
	binary string
	args   []string
	dir    string
	port   int
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	output *bytes.Buffer // read it only after ended
}

// Start runs a server until the test ends. The arguments are options of its
// configuration, such as "--maxmemory", "1mb".
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return StartBinary(t, "redis-server", args...)
}

// StartBinary runs a server of another make.
func StartBinary(t testing.TB, binary string, args ...string) *Server {
	t.Helper()
	// Not t.TempDir, which is removed before the server has ended.
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, binary: binary, args: args, dir: dir, port: FreePort(t)}
	s.Address = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(dir)
	})
	s.Restart()
	return s
}

// Dir is the server's folder.
func (s *Server) Dir() string { return s.dir }

// FreePort returns a port that nobody listens on. Redis wants to be told.
func FreePort(t testing.TB) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

// Restart runs the server again, on the same port, and returns when it answers.
func (s *Server) Restart() {
	s.t.Helper()
	s.Kill()
	s.output = new(bytes.Buffer)
	args := append([]string{
		"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir,
		"--save", "", "--appendonly", "no", "--loglevel", "notice",
	}, s.args...)
	if strings.Contains(strings.Join(args, " "), "--sentinel") {
		args = append([]string{s.dir + "/sentinel.conf"}, "--sentinel")
	}
	s.cmd = exec.Command(s.binary, args...) //nolint:gosec // a test's
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) { // it ends with the process
		_ = cmd.Wait()
		close(ended)
	}(s.cmd, s.ended)
	deadline := time.Now().Add(10 * time.Second)
	for {
		if reply, err := s.Do("PING"); err == nil && (reply == "PONG" || strings.HasPrefix(reply, "NOAUTH")) {
			return
		}
		select {
		case <-s.ended:
			s.t.Fatalf("%s ended: %s", s.binary, s.output)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s does not answer", s.binary)
		}
	}
}

// StartSentinel watches the primary under the name "mymaster". Beside the
// default user, who needs no password, it has those whose ACL rules are given.
func StartSentinel(t testing.TB, primary *Server, users ...string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "redistest")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, binary: "redis-server", args: []string{"--sentinel"}, dir: dir, port: FreePort(t)}
	s.Address = net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port))
	config := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nsentinel monitor mymaster 127.0.0.1 %d 1\nsentinel down-after-milliseconds mymaster 300\nsentinel failover-timeout mymaster 2000\n", s.port, dir, primary.port)
	if len(users) > 0 {
		config += "user " + strings.Join(users, "\nuser ") + "\n"
	}
	if err := os.WriteFile(dir+"/sentinel.conf", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Kill()
		os.RemoveAll(dir)
	})
	s.Restart()
	return s
}

// Kill ends the server at once, as a crash would.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGKILL)
	<-s.ended
	s.cmd = nil
}

// Hang stops the server without closing its connections. Continue lets it go on.
func (s *Server) Hang() { s.signal(syscall.SIGSTOP) }

// Continue is for a server that hangs.
func (s *Server) Continue() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(signal syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// Do sends a command on a connection of its own, and returns a simple reply or
// an error's text, or the lines of any other one.
func (s *Server) Do(args ...string) (string, error) {
	conn, err := net.DialTimeout("tcp", s.Address, time.Second)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, arg := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(arg), arg)
	}
	if _, err := conn.Write(b.Bytes()); err != nil {
		return "", err
	}
	return readReply(bufio.NewReader(conn))
}

func readReply(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	switch line[0] {
	case '$':
		size, err := strconv.Atoi(line[1:])
		if err != nil || size < 0 {
			return "", err
		}
		text := make([]byte, size+2)
		for n := 0; n < len(text); {
			m, err := r.Read(text[n:])
			if err != nil {
				return "", err
			}
			n += m
		}
		return string(text[:size]), nil
	case '*':
		count, err := strconv.Atoi(line[1:])
		if err != nil {
			return "", err
		}
		var items []string
		for range count {
			item, err := readReply(r)
			if err != nil {
				return "", err
			}
			items = append(items, item)
		}
		return strings.Join(items, "\n"), nil
	default:
		return line[1:], nil
	}
}

// Must is Do for what has to work.
func (s *Server) Must(args ...string) string {
	s.t.Helper()
	reply, err := s.Do(args...)
	if err != nil {
		s.t.Fatalf("%q: %v", args, err)
	}
	for _, problem := range []string{"ERR ", "NOAUTH ", "NOPERM ", "WRONGTYPE ", "OOM "} {
		if strings.HasPrefix(reply, problem) {
			s.t.Fatalf("%q: %s", args, reply)
		}
	}
	return reply
}

// StartCluster runs a Cluster of three primaries.
func StartCluster(t testing.TB, args ...string) []*Server {
	t.Helper()
	nodes := make([]*Server, 0, 3)
	for i := range 3 {
		node := Start(t, append([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no", "--cluster-port", strconv.Itoa(FreePort(t))}, args...)...)
		node.Must("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*5461), strconv.Itoa(min((i+1)*5461-1+i/2, 16383)))
		nodes = append(nodes, node)
	}
	for _, node := range nodes[1:] {
		nodes[0].Must("CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(node.port), node.busPort())
	}
	deadline := time.Now().Add(20 * time.Second)
	for _, node := range nodes {
		for {
			info := node.Must("CLUSTER", "INFO")
			if strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3") && strings.Contains(info, "cluster_slots_assigned:16384") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the Cluster does not come up: %s", info)
			}
			time.Sleep(20 * time.Millisecond) // there is nothing to wait on
		}
	}
	return nodes
}

func (s *Server) busPort() string {
	for i, arg := range s.args {
		if arg == "--cluster-port" {
			return s.args[i+1]
		}
	}
	return ""
}

// RestartWith runs the server again with other options.
func (s *Server) RestartWith(args ...string) {
	s.t.Helper()
	s.args = args
	s.Restart()
}

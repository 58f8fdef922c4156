//go:build unix

package integration

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/redistest"
	_ "github.com/viewersession/caddy-viewer-session/redis"
)

const (
	redisPassword      = "the-fleets-password-for-redis"
	fleetEncryptionKey = "the-fleets-encryption-key-0123456789abcdef"
)

// Three gateways, a thousand documents, twenty readers at each gateway at
// once: a thousand mints.
func TestFleetMintsEachTokenOnce(t *testing.T) {
	for _, binary := range redistest.Binaries(t) {
		t.Run(binary, func(t *testing.T) {
			server := redistest.StartBinary(t, binary, fleetUser...)
			f := newFleet(t, 3, server.Address, patient)
			const documents, readers = 1000, 20
			var wg sync.WaitGroup
			var tokens [documents]sync.Map
			start := time.Now()
			for _, g := range f.gateways {
				for reader := range readers {
					wg.Go(func() {
						// All gateways begin with the same documents; at each,
						// two readers ask for the same one at the same moment.
						for i := range documents {
							if i%(readers/2) != reader%(readers/2) {
								continue
							}
							token, err := f.token(g, fmt.Sprint("doc-", i))
							if err != nil {
								t.Error(err)
								return
							}
							tokens[i].Store(token, true)
						}
					})
				}
			}
			wg.Wait()
			took := time.Since(start)
			if t.Failed() {
				return
			}
			for i := range tokens {
				count := 0
				tokens[i].Range(func(any, any) bool { count++; return true })
				if count != 1 {
					t.Errorf("document %d has %d tokens", i, count)
				}
			}
			if minted := len(f.api.minted()); minted != documents {
				t.Errorf("%d mints, want %d", minted, documents)
			}
			t.Logf("%s for %d requests, operations %v", took, 3*2*documents, f.operations())

			// A gateway that comes later mints nothing.
			f.gateways = append(f.gateways, f.start())
			for i := range 20 {
				f.wantAlike(fmt.Sprint("doc-", i))
			}
			if minted := len(f.api.minted()); minted != 0 {
				t.Errorf("the fourth gateway led to %d mints", minted)
			}
			dump := server.Must("KEYS", "*")
			if strings.Contains(dump, "doc-") || strings.Count(dump, "viewer_session:") != documents {
				t.Errorf("%d keys in the store", strings.Count(dump, "viewer_session:"))
			}
		})
	}
}

// Whatever becomes of the store, no request fails, and afterwards the fleet
// shares its tokens again.
func TestFleetWithoutItsStore(t *testing.T) {
	server := redistest.Start(t, fleetUser...)
	f := newFleet(t, 3, server.Address, nil)
	for _, test := range []struct {
		name       string
		fail, heal func(server *redistest.Server)
	}{
		{"killed", (*redistest.Server).Kill, (*redistest.Server).Restart},
		{"hung", (*redistest.Server).Hang, (*redistest.Server).Continue},
		{"restarted empty", (*redistest.Server).Restart, func(*redistest.Server) {}},
		{
			"out of memory",
			func(s *redistest.Server) { s.Must("CONFIG", "SET", "maxmemory", "1") },
			func(s *redistest.Server) { s.Must("CONFIG", "SET", "maxmemory", "0") },
		},
		{
			"refuses the user",
			func(s *redistest.Server) {
				s.Must("ACL", "SETUSER", "gateway", "off")
				s.Must("CLIENT", "KILL", "USER", "gateway")
			},
			func(s *redistest.Server) { s.Must("ACL", "SETUSER", "gateway", "on") },
		},
		{
			"takes rights away",
			func(s *redistest.Server) { s.Must("ACL", "SETUSER", "gateway", "-@all") },
			func(s *redistest.Server) {
				s.Must("ACL", "SETUSER", "gateway", "+get", "+set", "+del", "+pttl", "+eval", "+evalsha", "+ping")
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f.wantShared()
			tr := f.traffic(8)
			t.Logf("before:   %s", tr.wait(300))
			test.fail(server)
			t.Logf("at first: %s", tr.wait(100))
			t.Logf("then:     %s", tr.wait(300))
			test.heal(server)
			f.wantShared()
			t.Logf("after:    %s", tr.wait(300))
			tr.stop()
			tr.wg.Wait()
			if len(tr.errs) > 0 {
				t.Errorf("%d requests failed, the first with %v", len(tr.errs), tr.errs[0])
			}
		})
	}
}

// A failover costs some seconds of sharing, and no request.
func TestFleetWithSentinel(t *testing.T) {
	primary := redistest.Start(t, append([]string{"--repl-diskless-sync-delay", "0"}, fleetUser...)...)
	host, port, _ := strings.Cut(primary.Address, ":")
	replica := redistest.Start(t, append([]string{"--replicaof", host + " " + port}, fleetUser...)...)
	sentinel := redistest.StartSentinel(t, primary)
	waitFor(t, "the replica does not come up", func() bool {
		return strings.Contains(replica.Must("INFO", "replication"), "master_link_status:up") &&
			strings.Contains(sentinel.Must("SENTINEL", "REPLICAS", "mymaster"), replica.Address)
	})
	f := newFleet(t, 3, sentinel.Address, func(caddyfile string) string {
		return strings.Replace(caddyfile, "username gateway", "master_name mymaster\n\t\t\tusername gateway", 1)
	})
	f.wantAlike("open")
	tr := f.traffic(8)
	t.Logf("before:   %s", tr.wait(300))
	primary.Kill()
	t.Logf("at first: %s", tr.wait(100))
	f.wantShared()
	t.Logf("after:    %s", tr.wait(300))
	tr.stop()
	tr.wg.Wait()
	if len(tr.errs) > 0 {
		t.Errorf("%d requests failed, the first with %v", len(tr.errs), tr.errs[0])
	}
	if replica.Must("DBSIZE") == "0" {
		t.Error("nothing is at the new primary")
	}
}

func TestFleetWithCluster(t *testing.T) {
	// Which node has what, is what a Cluster's clients ask as well.
	nodes := redistest.StartCluster(t, append(slices.Clone(fleetUser), "+cluster|slots")...)
	f := newFleet(t, 3, nodes[0].Address, func(caddyfile string) string {
		return strings.Replace(patient(caddyfile), "username gateway", "cluster\n\t\t\tusername gateway", 1)
	})
	for i := range 100 {
		f.wantAlike(fmt.Sprint("doc-", i))
	}
	if minted := len(f.api.minted()); minted != 100 {
		t.Errorf("%d mints, want 100", minted)
	}
	tr := f.traffic(8)
	t.Logf("before:   %s", tr.wait(300))
	nodes[2].Kill()
	t.Logf("at first: %s", tr.wait(100))
	t.Logf("then:     %s", tr.wait(300))
	tr.stop()
	tr.wg.Wait()
	if len(tr.errs) > 0 {
		t.Errorf("%d requests failed, the first with %v", len(tr.errs), tr.errs[0])
	}
}

func init() { examples["fleet"] = fleetExample }

// fleetExample runs the example's one Caddyfile as a gateway does.
func fleetExample(t *testing.T, s *stage, text string) {
	server := redistest.Start(t, fleetUser...)
	secrets := t.TempDir()
	for name, secret := range map[string]string{"api-key": testKey, "redis-password": redisPassword, "encryption-key": fleetEncryptionKey} {
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"ADMIN": s.admin, "GATEWAY": s.gateway, "ENDPOINT": s.api.url + "/viewer/sessions", "SECRETS": secrets, "REDIS": server.Address, "APP": s.app.address,
	} {
		t.Setenv(name, value)
	}
	// Not by s.load, since the example has its names from the environment.
	if err := loadText(strings.Replace(s.logged(text), "\tlog {\n", "\tlog {\n\t\tlevel DEBUG\n", 1)); err != nil {
		t.Fatal(err)
	}
	s.token("/documents/doc1")
	if !strings.Contains(server.Must("KEYS", "*"), "viewer_session:") {
		t.Error("the token is not in the store")
	}
	log, err := os.ReadFile(s.logFile)
	if err != nil || bytes.Contains(log, []byte(redisPassword)) || bytes.Contains(log, []byte(fleetEncryptionKey)) {
		t.Errorf("%v, or a secret in the log", err)
	}
}

// The Caddyfile in docs/fleet.md works, and its list of rights is the one that
// the tests run with.
func TestFleetDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	rights := strings.Join(fleetUser[slices.Index(fleetUser, "gateway"):], " ")
	if want := "user " + strings.Replace(rights, redisPassword, "PASSWORD", 1); !strings.Contains(string(text), "\n"+want+"\n") {
		t.Errorf("the docs do not say %q", want)
	}
	_, block, _ := strings.Cut(string(text), "```caddyfile\n")
	block, _, found := strings.Cut(block, "```")
	if !found {
		t.Fatal("no Caddyfile")
	}
	s := newStage(t)
	server := redistest.Start(t, fleetUser...)
	secrets := t.TempDir()
	for name, secret := range map[string]string{"redis": redisPassword, "viewer_session_key": fleetEncryptionKey} {
		if err := os.WriteFile(filepath.Join(secrets, name), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.load(site(t, block, "app:3000", "APP", "10.0.0.5:6379", server.Address, "/run/secrets/", secrets+"/"))
	s.token("/documents/doc1")
	if !strings.Contains(server.Must("KEYS", "*"), "viewer_session:") {
		t.Error("the token is not in the store")
	}
}

// The example's script starts everything, and stops all that it has started.
func TestFleetScript(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	first := 0
	for { // nine ports in a row
		_, port, _ := strings.Cut(freeAddress(t), ":")
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		if first == 0 || n < first {
			first = n
		}
		if n-first >= 8 {
			break
		}
	}
	var output bytes.Buffer
	ready, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	cmd := exec.Command("bash", "../examples/fleet/run.sh")
	cmd.Env = append(os.Environ(), asCommand+"=1", "CADDY="+self, "PORT="+strconv.Itoa(first))
	cmd.Stdout, cmd.Stderr = w, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that what it leaves behind can be found
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	said := make([]byte, 4<<10)
	n, err := io.ReadAtLeast(ready, said, 100)
	if err != nil {
		t.Fatalf("%v: %s", err, output.Bytes())
	}
	var gateways []string
	for line := range strings.SplitSeq(string(said[:n]), "\n") {
		if url, ok := strings.CutPrefix(strings.TrimSpace(line), "curl "); ok && strings.Contains(url, "/documents/") {
			gateways = append(gateways, strings.TrimSuffix(url, "floor-plan"))
		}
	}
	if len(gateways) != 3 {
		t.Errorf("it names %d gateways: %s", len(gateways), said[:n])
	}
	alike := func(document string) bool {
		seen := make(map[string]bool)
		for _, gateway := range gateways {
			resp, err := http.Get(gateway + document)
			if err != nil {
				t.Fatal(err)
			}
			token, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if payload, err := decodePayload(strings.TrimSpace(string(token))); err != nil || !strings.Contains(payload, strconv.Quote(document)) {
				t.Errorf("%s%s: %q", gateway, document, token)
			}
			seen[string(token)] = true
		}
		return len(seen) == 1
	}
	// On a busy machine, the store may once be too slow for the example's time-out.
	if !alike("floor-plan") && !alike("second") && !alike("third") {
		t.Error("three gateways have different tokens")
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v: %s", err, output.Bytes())
	}
	if err := syscall.Kill(-cmd.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("it left processes behind: %v", err)
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
}

func decodePayload(jwt string) (string, error) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return "", errors.New("not a token")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	return string(payload), err
}

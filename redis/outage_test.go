package redis

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	viewersession "github.com/viewersession/caddy-viewer-session"
	"github.com/viewersession/caddy-viewer-session/internal/redistest"
)

// within fails the test if operation takes longer than the store's timeout and
// some time for a busy machine.
func within(t *testing.T, limit time.Duration, operation func()) {
	t.Helper()
	start := time.Now()
	operation()
	if took := time.Since(start); took > limit+2*time.Second {
		t.Errorf("took %s, want at most %s", took, limit)
	}
}

// wantOpened fails operations until the store does not ask the server any more.
func (s *storeTest) wantOpened() {
	s.t.Helper()
	for i := range failuresToOpen {
		_, err := s.tryAcquire(fmt.Sprint("doc", i), "")
		if err == nil {
			s.t.Fatal("no error")
		}
		if errors.Is(err, viewersession.ErrStoreUnavailable) {
			s.t.Fatalf("it is not asked after %d failures", i)
		}
	}
	for _, err := range []error{
		func() error { _, err := s.tryAcquire("doc", ""); return err }(),
		s.Put(s.t.Context(), "doc", "", []byte("x"), time.Minute),
	} {
		if !errors.Is(err, viewersession.ErrStoreUnavailable) {
			s.t.Errorf("got %v, want ErrStoreUnavailable", err)
		}
	}
}

// wantRecovery is for a server that works again.
func (s *storeTest) wantRecovery() {
	s.t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		if _, err := s.tryAcquire("after", ""); err == nil {
			return
		} else if time.Now().After(deadline) {
			s.t.Fatalf("it does not recover: %v", err)
		}
		time.Sleep(10 * time.Millisecond) // the breaker's clock is the machine's
	}
}

func TestServerIsKilled(t *testing.T) {
	everyMake(t, func(t *testing.T, server *redistest.Server) {
		s := newStore(t, "", server)
		s.put("doc", "", "entry", time.Hour)
		server.Kill()
		within(t, failuresToOpen*DefaultTimeout, s.wantOpened)
		server.Restart() // empty, and without the scripts
		s.wantRecovery()
		s.wantLock("doc", "")
		s.put("doc", "", "entry", time.Hour)
		s.wantEntry("doc", "entry")
	})
}

func TestServerHangs(t *testing.T) {
	everyMake(t, func(t *testing.T, server *redistest.Server) {
		s := newStore(t, "timeout 50ms", server)
		s.put("doc", "", "entry", time.Hour)
		server.Hang()
		within(t, failuresToOpen*50*time.Millisecond, s.wantOpened)
		server.Continue()
		s.wantRecovery()
		s.wantEntry("doc", "entry")
	})
}

// Loading a config does not depend on the server, and does not take long.
func TestServerIsNotThereYet(t *testing.T) {
	server := redistest.Start(t)
	server.Hang()
	var hung *storeTest
	within(t, DefaultTimeout, func() { hung = newStore(t, "", server) })
	server.Continue()
	hung.wantRecovery()
	server.Kill()
	down := newStore(t, "timeout 100ms", server)
	server.Restart()
	down.wantRecovery()
}

// Out of memory, the server still answers look-ups.
func TestServerIsOutOfMemory(t *testing.T) {
	everyMake(t, func(t *testing.T, server *redistest.Server) {
		s := newStore(t, "", server)
		s.put("doc", "", "entry", time.Hour)
		server.Must("CONFIG", "SET", "maxmemory", "1")
		for i := range 2 * failuresToOpen {
			if _, err := s.tryAcquire(fmt.Sprint("cold", i), ""); err == nil || errors.Is(err, viewersession.ErrStoreUnavailable) {
				t.Fatalf("got %v", err)
			}
			s.wantEntry("doc", "entry")
		}
		server.Must("CONFIG", "SET", "maxmemory", "0")
		s.wantLock("cold", "")
	})
}

func TestServerRefuses(t *testing.T) {
	server := redistest.Start(t, "--user", "default", "on", "nopass", "~*", "&*", "+@all",
		"--user", "gateway", "on", ">"+testPassword, "~viewer_session:*", "+get", "+set", "+del", "+eval", "+evalsha", "+ping", "+hello",
		"--user", "reader", "on", ">"+testPassword, "~*", "+@read", "+ping",
		"--user", "second", "on", ">"+testPassword, "~viewer_session:*", "+get", "+set", "+del", "+eval", "+evalsha", "+ping", "+select")
	for text, want := range map[string]string{
		"username nobody\npassword {env.TEST_PASSWORD}":                "WRONGPASS",
		"username gateway\npassword {env.TEST_OTHER_KEY}":              "WRONGPASS",
		"username reader\npassword {env.TEST_PASSWORD}":                "NOPERM",
		"username gateway\npassword {env.TEST_PASSWORD}\nprefix other": "NOPERM",
	} {
		s := newStore(t, text, server)
		if _, err := s.tryAcquire("doc", ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	s := newStore(t, "username gateway\npassword {env.TEST_PASSWORD}", server)
	s.wantLock("doc", "")
	s.put("doc", "", "entry", time.Minute)
	s.wantEntry("doc", "entry")
	// Another database needs one right more, and names may come from the environment.
	t.Setenv("TEST_USER", "second")
	newStore(t, "username {env.TEST_USER}\npassword {env.TEST_PASSWORD}\ndatabase 1", server).wantLock("doc", "")
	// Rights can be taken away while it runs.
	server.Must("ACL", "SETUSER", "gateway", "-evalsha", "-eval")
	if _, err := s.tryAcquire("doc", ""); err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("got %v", err)
	}
}

// A password that is changed in its file is used for new connections.
func TestPasswordFileChanges(t *testing.T) {
	server := redistest.Start(t, "--requirepass", testPassword)
	file := filepath.Join(t.TempDir(), "password")
	write := func(password string) {
		if err := os.WriteFile(file, []byte(password+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(testPassword)
	s := newStore(t, "password {file."+file+"}", server)
	s.wantLock("doc", "")
	write("the next password, which is secret")
	server.Kill()
	server.RestartWith("--requirepass", "the next password, which is secret")
	s.wantRecovery()
}

// A request that began with the old config still finds its connections, and
// they end in the end.
func TestConnectionsOutliveTheirConfig(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, "", server)
	lock := s.wantLock("doc", "")
	s.end()
	s.put("doc", lock, "entry", time.Minute)
	waitFor(t, "the end of the connections", func() bool {
		_, err := s.tryAcquire("doc", "")
		return err != nil
	})
}

// Whoever has a lock gives it back although the server is held to be down, and
// although the answer that gave it was lost.
func TestLocksAreGivenBackAfterAHiccup(t *testing.T) {
	server := redistest.Start(t)
	s, other := newStore(t, "timeout 100ms", server), newStore(t, "timeout 1s", server)
	held := s.wantLock("held", "")
	server.Hang()
	lost := make(map[string]string)
	for i := range failuresToOpen {
		name := fmt.Sprint("lost", i)
		got, err := s.tryAcquire(name, "")
		if err == nil || got.Lock == "" {
			t.Fatalf("got %+v, %v", got, err)
		}
		lost[name] = got.Lock
	}
	if _, err := s.tryAcquire("another", ""); !errors.Is(err, viewersession.ErrStoreUnavailable) {
		t.Fatalf("got %v", err)
	}
	server.Continue()
	s.put("held", held, "entry", time.Minute)
	other.wantEntry("held", "entry")
	for name, lock := range lost {
		if err := s.Release(t.Context(), name, lock); err != nil {
			t.Error(err)
		}
		other.wantLock(name, "")
	}
}

// A server that cannot write for now still answers look-ups.
func TestServerCannotWrite(t *testing.T) {
	server := redistest.Start(t)
	s := newStore(t, "", server)
	s.put("doc", "", "entry", time.Hour)
	for _, setting := range [][2]string{{"min-replicas-to-write", "1"}, {"maxmemory", "1"}} {
		server.Must("CONFIG", "SET", setting[0], setting[1])
		for i := range 2 * failuresToOpen {
			if _, err := s.tryAcquire(fmt.Sprint("cold", i), ""); err == nil {
				t.Fatal("no error")
			}
		}
		s.wantEntry("doc", "entry")
		server.Must("CONFIG", "SET", setting[0], "0")
	}
	server.Must("REPLICAOF", "127.0.0.1", "1")
	for i := range 2 * failuresToOpen {
		if _, err := s.tryAcquire(fmt.Sprint("cold", i), ""); err == nil {
			t.Fatal("no error")
		}
	}
	s.wantEntry("doc", "entry")
}

package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	viewersession "github.com/viewersession/caddy-viewer-session"
	"github.com/viewersession/caddy-viewer-session/internal/redistest"
)

func TestNodeOfAClusterWithoutCluster(t *testing.T) {
	nodes := redistest.StartCluster(t)
	s := newStore(t, "", nodes[0])
	var hinted bool
	for i := range 20 {
		_, err := s.tryAcquire(fmt.Sprint("doc", i), "")
		hinted = hinted || err != nil && strings.Contains(err.Error(), "write cluster")
	}
	if !hinted {
		t.Error("no hint")
	}
}

func TestSentinel(t *testing.T) {
	primary := redistest.Start(t, "--repl-diskless-sync-delay", "0")
	host, port, _ := strings.Cut(primary.Address, ":")
	replica := redistest.Start(t, "--replicaof", host+" "+port)
	sentinel := redistest.StartSentinel(t, primary, "watcher on >"+testPassword+" &* +sentinel +subscribe +ping")
	waitFor(t, "the replica", func() bool {
		return strings.Contains(replica.Must("INFO", "replication"), "master_link_status:up") &&
			strings.Contains(sentinel.Must("SENTINEL", "REPLICAS", "mymaster"), replica.Address)
	})
	s := newStore(t, "master_name mymaster", sentinel)
	s.put("doc", "", "entry", time.Hour)
	waitFor(t, "the entry", func() bool { return replica.Must("DBSIZE") == "1" })
	s.wantEntry("doc", "entry")

	// Sentinels can have users as well.
	if _, err := newStore(t, "master_name mymaster\nsentinel_username watcher\nsentinel_password {env.TEST_OTHER_KEY}", sentinel).tryAcquire("doc", ""); err == nil {
		t.Error("the Sentinel's password does not matter")
	}
	s = newStore(t, "master_name mymaster\nsentinel_username watcher\nsentinel_password {env.TEST_PASSWORD}", sentinel)
	s.wantEntry("doc", "entry")

	primary.Kill()
	waitFor(t, "the failover", func() bool {
		got, err := s.tryAcquire("doc", "")
		return err == nil && string(got.Entry) == "entry"
	})
	s.put("doc", "", "second", time.Hour)
	if got := replica.Must("DBSIZE"); got == "0" {
		t.Error("nothing is at the new primary")
	}
	s.wantEntry("doc", "second")
}

func waitFor(t *testing.T, what string, reached func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !reached() {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", what)
		}
		time.Sleep(20 * time.Millisecond) // other processes cannot be waited for
	}
}

func TestCluster(t *testing.T) {
	nodes := redistest.StartCluster(t)
	// One node knows the others.
	testStore(t, newStore(t, "cluster", nodes[0]), newStore(t, "", nodes...))

	s := newStore(t, "timeout 500ms", nodes...)
	for i := range 100 {
		lock := s.wantLock(fmt.Sprint("doc", i), "")
		s.put(fmt.Sprint("doc", i), lock, "entry", time.Hour)
	}
	for _, node := range nodes {
		if size := node.Must("DBSIZE"); size == "0" {
			t.Errorf("%s has nothing", node.Address)
		}
	}
	// Without one of them, the others go on as if nothing had happened.
	var lost, kept []string
	for i := range 100 {
		name := fmt.Sprint("doc", i)
		if nodes[2].Must("EXISTS", s.entryKey(s.sealers[0].name(name))) == "1" {
			lost = append(lost, name)
		} else {
			kept = append(kept, name)
		}
	}
	if len(lost) <= failuresToOpen || len(kept) <= failuresToOpen {
		t.Fatalf("%d names on one node, %d on the others", len(lost), len(kept))
	}
	nodes[2].Kill()
	skipped := false
	for _, name := range lost {
		_, err := s.tryAcquire(name, "")
		if err == nil {
			t.Errorf("%s is found at a node that is gone", name)
		}
		skipped = skipped || errors.Is(err, viewersession.ErrStoreUnavailable)
	}
	if !skipped {
		t.Error("the node that is gone is asked again and again")
	}
	for _, name := range kept {
		s.wantEntry(name, "entry")
	}
}

// Reloads under load leave no connections behind: what previous configs have open
// is bounded, and goes within seconds.
func TestConnectionsOfManyReloads(t *testing.T) {
	server := redistest.Start(t)
	clients := func() int {
		return strings.Count(server.Must("CLIENT", "LIST"), "addr=") - 1 // but for who asks
	}
	const readers = 20
	var current atomic.Pointer[storeTest]
	current.Store(newStore(t, "timeout 1s", server))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for i := range readers {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprint(i, "-", n)
				store := current.Load()
				got, err := store.Acquire(t.Context(), name, "", time.Minute)
				if err == nil {
					// Whichever config is in use finishes it.
					err = current.Load().Release(t.Context(), name, got.Lock)
				}
				if err != nil && !errors.Is(err, viewersession.ErrStoreUnavailable) {
					t.Error(err)
				}
			}
		})
	}
	one := 0
	waitFor(t, "the first config to have its connections", func() bool {
		before := one
		one = clients()
		return one >= readers && one == before
	})
	most := 0
	for range 25 {
		next := newStore(t, "timeout 1s", server)
		current.Swap(next).end()
		most = max(most, clients())
	}
	if limit := (maxRetired + 3) * one; most > limit {
		t.Errorf("%d connections, want at most %d", most, limit)
	}
	waitFor(t, "the connections of previous configs to go", func() bool { return clients() <= one+readers })
}

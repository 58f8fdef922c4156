package viewersession

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
)

// fleetCost is what a fleet's documents cost: per document and renewal
// interval, so that it can be multiplied to any number of documents.
type fleetCost struct {
	mints, acquires, puts float64
}

// simulateFleet runs the real pools, with a store and an API in memory, under
// a fake clock: each gateway is asked for each document once per pause, at
// random moments, for the given time.
func simulateFleet(t *testing.T, gateways, documents int, ttl, pause, duration time.Duration) fleetCost {
	t.Helper()
	var cost fleetCost
	withFleet(t, gateways, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		random := rand.New(rand.NewPCG(1, uint64(gateways)))
		asks := make([]*claims.Claims, documents)
		for i := range asks {
			asks[i] = testClaims(fmt.Sprint("doc-", i))
			asks[i].TTL, asks[i].MinRemaining = ttl, ttl/4
		}
		next := make([][]time.Duration, gateways)
		for g := range next {
			next[g] = make([]time.Duration, documents)
			for d := range next[g] {
				next[g][d] = rand.N(pause)
			}
		}
		run := func(from, to time.Duration) {
			step := pause / 20
			for now := from; now < to; now += step {
				for g, p := range fleet {
					for d, a := range asks {
						if next[g][d] > now {
							continue
						}
						next[g][d] += time.Duration(random.ExpFloat64() * float64(pause))
						if _, _, f := p.get(t.Context(), a); f != nil {
							t.Fatal(f)
						}
					}
				}
				synctest.Wait()
				time.Sleep(step)
			}
		}
		run(0, duration/4) // until nothing is in step any more
		store.mu.Lock()
		store.calls = nil
		store.mu.Unlock()
		before := fleet[0].api.Count()
		run(duration/4, duration)

		intervals := float64(documents) * float64(duration*3/4) / float64(ttl)
		cost.mints = float64(fleet[0].api.Count()-before) / intervals
		store.mu.Lock()
		defer store.mu.Unlock()
		for _, call := range store.calls {
			switch call {
			case "acquire":
				cost.acquires += 1 / intervals
			case "put":
				cost.puts += 1 / intervals
			}
		}
	})
	return cost
}

// modelFleet is the cost model that docs/fleet.md gives: per document and ttl,
// if every gateway is asked for the document often.
func modelFleet(gateways int) fleetCost {
	// A token is due when (ttl + min_remaining)/2 times its spread remain, and
	// the gateway with the widest spread comes first.
	widest := 1 - renewalSpread + 2*renewalSpread*float64(gateways)/float64(gateways+1)
	interval := 1 - (1+0.25)/2*widest
	mints := 1 / interval
	// Whoever renews looks, takes the lock and puts; the others look.
	return fleetCost{mints: mints, acquires: mints * float64(gateways+1), puts: mints}
}

// The cost model says what the code does, for one gateway up to hundreds.
func TestFleetCostModel(t *testing.T) {
	for _, gateways := range []int{1, 3, 10, 100, 300} {
		t.Run(fmt.Sprint(gateways), func(t *testing.T) {
			t.Parallel()
			documents, duration := max(600/gateways, 4), 8*time.Hour
			if gateways >= 100 {
				duration = 3 * time.Hour
			}
			got := simulateFleet(t, gateways, documents, time.Hour, time.Minute, duration)
			want := modelFleet(gateways)
			t.Logf("per document and ttl: simulated %.2f mints, %.1f look-ups, %.2f puts; model %.2f, %.1f, %.2f",
				got.mints, got.acquires, got.puts, want.mints, want.acquires, want.puts)
			for what, pair := range map[string][2]float64{
				"mints": {got.mints, want.mints}, "look-ups": {got.acquires, want.acquires}, "puts": {got.puts, want.puts},
			} {
				// Requests that come a minute apart find a token that is due a
				// little late, which the model leaves out.
				if math.Abs(pair[0]/pair[1]-1) > 0.12 {
					t.Errorf("%s: simulated %.2f, the model says %.2f", what, pair[0], pair[1])
				}
			}
		})
	}
}

// What three processes do when all ask for the same thousand documents at once
// (TestFleetMintsEachTokenOnce of the integration tests) is what the
// simulation says: one mint and one put each, and two look-ups that find it.
func TestFleetCostOfAColdStart(t *testing.T) {
	withFleet(t, 3, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].api.Delay = 50 * time.Millisecond
		const documents, readers = 1000, 20
		before := gather(t, fleet[0].endpoint.Host)
		var wg sync.WaitGroup
		for _, p := range fleet {
			for reader := range readers {
				wg.Go(func() {
					for i := reader % (readers / 2); i < documents; i += readers / 2 {
						if _, _, f := p.get(t.Context(), testClaims(fmt.Sprint("doc-", i))); f != nil {
							t.Error(f)
						}
					}
				})
			}
		}
		wg.Wait()
		counts := gather(t, fleet[0].endpoint.Host)
		for name := range counts {
			counts[name] -= before[name]
		}
		for name, want := range map[string]float64{"acquire locked": documents, "acquire hit": 2 * documents, "put ok": documents, "acquire error": 0} {
			if got := counts["store_operations_total "+name]; got != want {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		fleet[0].wantMints(documents)
		t.Logf("%v look-ups while another gateway minted", counts["store_operations_total acquire held"])
	})
}

// The table in docs/fleet.md is what the model says.
func TestFleetCostTable(t *testing.T) {
	text, err := os.ReadFile("docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	number := func(cell string) float64 {
		t.Helper()
		value, err := strconv.ParseFloat(strings.ReplaceAll(cell, ",", ""), 64)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	rows := regexp.MustCompile(`(?m)^\| ([\d,]+) \| ([\d,]+) \| (\d+) \| (\w+) \| ([\d.,]+) \| ([\d.,]+) \| ([\d.,]+) \| ([\d.]+) (MB|GB) \|$`).FindAllStringSubmatch(string(text), -1)
	if len(rows) < 5 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, row := range rows {
		documents, each := number(row[2]), int(number(row[3]))
		ttl, err := time.ParseDuration(row[4])
		if err != nil {
			t.Fatal(err)
		}
		cost := modelFleet(each)
		perSecond := documents / ttl.Seconds()
		megabytes := number(row[8])
		if row[9] == "GB" {
			megabytes *= 1000
		}
		for what, pair := range map[string][2]float64{
			"mints":           {number(row[5]), cost.mints * perSecond},
			"without a store": {number(row[6]), modelFleet(1).mints * float64(each) * perSecond},
			"look-ups":        {number(row[7]), cost.acquires * perSecond},
			"store":           {megabytes, documents * 1200 / 1e6},
		} {
			if math.Abs(pair[0]/pair[1]-1) > 0.02 {
				t.Errorf("%s: %s: the table says %v, the model %.1f", row[0], what, pair[0], pair[1])
			}
		}
	}
}

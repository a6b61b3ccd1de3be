/*
 * Functions that DPDK has only as static inline, made callable. The names with a leading underscore are capsule's.
 * Each is meant to be called once per burst, not once per packet.
 */
#ifndef SLUICE_SHIM_H
#define SLUICE_SHIM_H

#include <stddef.h>
#include <stdint.h>

struct rte_mbuf;
struct rte_mempool;

/** This thread's DPDK error number. */
int _rte_errno(void);
/** One mbuf, reset, or NULL. */
struct rte_mbuf *_rte_pktmbuf_alloc(struct rte_mempool *mp);
/** Frees a chain of segments, each into its own pool. */
void _rte_pktmbuf_free(struct rte_mbuf *m);
/** All of `count` mbufs, reset, or none: 0 or a negative errno. `mbufs` may hold pointers to mbufs of the pool's after a failure. */
int _rte_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned count);
/** Returns objects to a pool without looking at them. */
void _rte_mempool_put_bulk(struct rte_mempool *mp, void *const *obj_table, unsigned n);
/** How many received frames, up to `nb_pkts`, were written to the front of `rx_pkts`. The rest of it may hold pointers to others'. */
uint16_t _rte_eth_rx_burst(uint16_t port_id, uint16_t queue_id, struct rte_mbuf **rx_pkts, uint16_t nb_pkts);
/** How many of `nb_pkts` frames the device took, first ones first. */
uint16_t _rte_eth_tx_burst(uint16_t port_id, uint16_t queue_id, struct rte_mbuf **tx_pkts, uint16_t nb_pkts);

/** Gets DPDK's log text: `level` is an RTE_LOG_* value, `text` is not terminated and may hold several lines. */
typedef void (*sluice_log_sink)(uint32_t level, const char *text, size_t len);
/** Sends DPDK's log, from now on and also that of an EAL initialised later, to `sink`: 0, or -1 with errno. */
int sluice_log_to(sluice_log_sink sink);

#endif

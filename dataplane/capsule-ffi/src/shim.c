/* See shim.h. */
#include <stdio.h>

#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_log.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>

#include "shim.h"

int _rte_errno(void)
{
	return rte_errno;
}

struct rte_mbuf *_rte_pktmbuf_alloc(struct rte_mempool *mp)
{
	return rte_pktmbuf_alloc(mp);
}

void _rte_pktmbuf_free(struct rte_mbuf *m)
{
	rte_pktmbuf_free(m);
}

int _rte_pktmbuf_alloc_bulk(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned count)
{
	return rte_pktmbuf_alloc_bulk(pool, mbufs, count);
}

void _rte_mempool_put_bulk(struct rte_mempool *mp, void *const *obj_table, unsigned n)
{
	rte_mempool_put_bulk(mp, obj_table, n);
}

uint16_t _rte_eth_rx_burst(uint16_t port_id, uint16_t queue_id, struct rte_mbuf **rx_pkts, uint16_t nb_pkts)
{
	return rte_eth_rx_burst(port_id, queue_id, rx_pkts, nb_pkts);
}

uint16_t _rte_eth_tx_burst(uint16_t port_id, uint16_t queue_id, struct rte_mbuf **tx_pkts, uint16_t nb_pkts)
{
	return rte_eth_tx_burst(port_id, queue_id, tx_pkts, nb_pkts);
}

static sluice_log_sink log_sink;

/*
 * DPDK flushes after each message, in the thread that wrote it, so its level is at hand (another thread's message, written
 * at the same moment, may get it too).
 */
static ssize_t log_write(void *cookie, const char *buf, size_t size)
{
	int level = rte_log_cur_msg_loglevel();

	(void)cookie;
	log_sink(level < 0 ? RTE_LOG_INFO : (uint32_t)level, buf, size);
	return (ssize_t)size;
}

int sluice_log_to(sluice_log_sink sink)
{
	cookie_io_functions_t io = { .write = log_write };
	FILE *stream;

	log_sink = sink;
	stream = fopencookie(NULL, "w", io);
	if (stream == NULL)
		return -1;
	/* Room for a whole message: nothing is written before DPDK's own flush, unless a message is longer. */
	if (setvbuf(stream, NULL, _IOFBF, 4096) != 0 || rte_openlog_stream(stream) != 0) {
		fclose(stream);
		return -1;
	}
	return 0;
}

/* fabricctl.clock._fit: the inner part of fabricctl/clock/fit.py, typed in _fit.pyi. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdlib.h>

#include "fit.h"

/* The finite samples of a row; mirrored where ``sign`` is -1. */
static struct fit_side
side_of(double *room, const double *s, const double *ns, Py_ssize_t width, double sign)
{
	struct fit_side side = { room, room + width, 0 };

	for (Py_ssize_t i = 0; i < width; i++) {
		if (!isfinite(ns[i]))
			continue;
		side.s[side.count] = sign * s[i];
		side.ns[side.count++] = sign * ns[i];
	}
	return side;
}

static PyObject *fit_all(Py_buffer in[5], double *room)
{
	Py_ssize_t edges = in[4].len / (Py_ssize_t)sizeof(struct fit_given);
	Py_ssize_t wide_a = edges ? in[0].len / 8 / edges : 0, wide_b = edges ? in[2].len / 8 / edges : 0;
	PyObject *found = PyBytes_FromStringAndSize(NULL, edges * (Py_ssize_t)sizeof(struct fit_found));
	struct fit_found *to;

	if (!found)
		return NULL;
	to = (struct fit_found *)PyBytes_AS_STRING(found);
	Py_BEGIN_ALLOW_THREADS
	for (Py_ssize_t i = 0; i < edges; i++) {
		const double *row[4];

		for (int j = 0; j < 4; j++)
			row[j] = (const double *)in[j].buf + i * (j < 2 ? wide_a : wide_b);
		to[i] = fit_edge(
			side_of(room, row[0], row[1], wide_a, 1),
			side_of(room + 2 * wide_a, row[2], row[3], wide_b, -1),
			(const struct fit_given *)in[4].buf + i
		);
	}
	Py_END_ALLOW_THREADS
	return found;
}

/* fit(above_s, above_ns, below_s, below_ns, given): C-contiguous arrays of doubles, (edges, samples)
 * each but for given, (edges, 3); as many rows of struct fit_found as there are edges. */
static PyObject *fit(PyObject *module, PyObject *args)
{
	Py_buffer in[5];
	PyObject *found = NULL;
	Py_ssize_t rows;
	double *room = NULL;

	(void)module;
	if (!PyArg_ParseTuple(
		    args, "y*y*y*y*y*", &in[0], &in[1], &in[2], &in[3], &in[4]
	    ))
		return NULL;
	rows = in[4].len / (Py_ssize_t)sizeof(struct fit_given);
	if (in[4].len % (Py_ssize_t)sizeof(struct fit_given) || in[0].len != in[1].len
	    || in[2].len != in[3].len || (rows ? in[0].len % (8 * rows) || in[2].len % (8 * rows)
					       : in[0].len || in[2].len))
		PyErr_SetString(PyExc_ValueError, "fit: arrays of different lengths");
	else if ((room = malloc(2 * (size_t)(in[0].len + in[2].len) / (rows ? rows : 1) + 1)))
		found = fit_all(in, room);
	else
		PyErr_NoMemory();
	free(room);
	for (int i = 0; i < 5; i++)
		PyBuffer_Release(&in[i]);
	return found;
}

static PyMethodDef functions[] = {
	{ "fit", fit, METH_VARARGS, NULL },
	{ NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "_fit",
	.m_methods = functions,
};

PyMODINIT_FUNC PyInit__fit(void)
{
	return PyModule_Create(&definition);
}
